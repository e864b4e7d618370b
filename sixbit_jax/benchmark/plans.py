"""The sampling programs that are compared, and the plans that each is run with."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from sixbit_jax.policies import (
    Policy,
    chain,
    fixed,
    int8_attention,
    sparse_attention,
)
from sixbit_jax.routes import Route

Routes = Literal["chain", "bf16", "int8", "nvfp4", "mixed"]
FRACTIONS = (0.0, 0.2, 0.33, 0.5)
DENSITIES = (0.5, 0.35)
SPARSE_FRACTIONS = (0.0, 0.33, 0.5)
BASELINE = "bf16"
INT8_TRACE = "trace, int8"


@dataclasses.dataclass(frozen=True)
class Spec:
    """One compiled program and the plans it is run with.

    Attributes:
      name: in records.
      routes: "chain" is full precision on bf16 weights, the others run on NVFP4.
      attention: precision of the scores; "half": every second block in 8 bits, by
        the plan.
      cache_format: of the delta cache.
      fractions: of the blocks skipped in every step but the first; a program that
        has only 0 holds no cache.
      kernels: False leaves everything to XLA and cuDNN.
      batched: both guidance branches in one forward pass.
      skips: "rotating" blocks, other ones in every step, so that every block has a
        slot of the cache; the "same" blocks, so that it holds only those; or whole
        "steps", so that all blocks share one delta.
      densities: shares of the blocks of keys that sparse attention computes, in every
        block and step; for each, a threshold is found before anything is timed. Empty:
        attention is dense.
      approximate: blocks of keys that are not computed count by their means; they are
        dropped otherwise.
      lora_rank: of a LoRA beside every quantized linear of the blocks; 0 is none.
    """

    name: str
    routes: Routes = "int8"
    attention: Literal["bf16", "int8", "half"] = "int8"
    cache_format: str = "bf16"
    fractions: tuple[float, ...] = FRACTIONS
    kernels: bool = True
    batched: bool = False
    skips: Literal["rotating", "same", "steps"] = "rotating"
    densities: tuple[float, ...] = ()
    approximate: bool = True
    lora_rank: int = 0

    @property
    def quantized(self) -> bool:
        """Whether the weights are NVFP4."""
        return self.routes != "chain"


# In the order of their weight for the result: a run that is cut has the first ones.
SPECS = (
    Spec(BASELINE, "chain", "bf16", fractions=(0.0,), kernels=False),
    Spec("int8, 8-bit attention"),
    Spec(
        "int8, 8-bit attention, sparse",
        fractions=SPARSE_FRACTIONS,
        densities=DENSITIES,
    ),
    Spec("int8", attention="bf16"),
    Spec("int8, 8-bit attention, nvfp4 cache", cache_format="nvfp4"),
    Spec(
        "int8, 8-bit attention, nvfp4 cache of a third",
        cache_format="nvfp4",
        fractions=(0.0, 0.33),
        skips="same",
    ),
    Spec("int8, 8-bit attention, whole steps", fractions=(0.0, 0.33), skips="steps"),
    Spec("mixed, 8-bit attention, int8 cache", "mixed", cache_format="int8"),
    Spec("int8, 8-bit attention, no cache", fractions=(0.0,)),
    Spec("int8, 8-bit attention in half", attention="half", fractions=(0.0,)),
    Spec(
        "int8, 8-bit attention, sparse, dropped",
        fractions=SPARSE_FRACTIONS,
        densities=DENSITIES,
        approximate=False,
    ),
    Spec(
        "int8, sparse",
        attention="bf16",
        fractions=SPARSE_FRACTIONS,
        densities=DENSITIES,
    ),
    Spec("bf16, our attention", "chain", "bf16", fractions=(0.0,)),
    Spec("nvfp4", "nvfp4", "bf16", fractions=(0.0, 0.33)),
    Spec("int8, 8-bit attention, batched", fractions=(0.0, 0.33), batched=True),
    Spec("int8, 8-bit attention, int8 cache", cache_format="int8"),
    Spec("w4a16", "bf16", "bf16", fractions=(0.0,)),
    Spec(
        "int8, 8-bit attention, LoRA of rank 64 beside", fractions=(0.0,), lora_rank=64
    ),
)


def skip_plan(steps: int, blocks: int, fraction: float, kind: str) -> np.ndarray:
    """Skips `fraction` of the blocks, evenly spread, in every step but the first.

    Args:
      steps: denoising steps.
      blocks: L.
      fraction: rounded to whole blocks, or to whole steps.
      kind: see `Spec.skips`.

    Returns:
      bool [steps, L].
    """

    def spread(count: int) -> np.ndarray:
        row = np.zeros(count, bool)
        chosen = round(fraction * count)
        if chosen:
            row[np.floor((np.arange(chosen) + 0.5) * count / chosen).astype(int)] = True
        return row

    if kind == "steps":
        plan = np.repeat(np.append(False, spread(steps - 1))[:, None], blocks, 1)
    else:
        row, rotate = spread(blocks), kind == "rotating"
        plan = np.stack([np.roll(row, step if rotate else 0) for step in range(steps)])
    plan[0] = False
    return plan


def _route_table(routes: Routes, blocks: int, sites: int) -> np.ndarray:
    """[L, S]; mixed: INT8 and NVFP4 in turn, along blocks and along sites."""
    if routes == "mixed":
        turn = np.add.outer(np.arange(blocks), np.arange(sites)) % 2
        return np.where(turn, Route.INT8, Route.NVFP4).astype(np.int32)
    return np.full((blocks, sites), Route[routes.upper()], np.int32)


def policies(
    spec: Spec, blocks: int, sites: int, steps: int, *, tau: float = 0.0
) -> dict[float, list[Policy]]:
    """The policy of each skip fraction, all of one compiled program.

    Args:
      spec: the program.
      blocks, sites: of the model.
      steps: denoising steps.
      tau: threshold of sparse attention, where the program has it.

    Returns:
      By fraction, a list with one policy that every guidance branch shares.
    """
    if spec.routes == "chain":
        return {0.0: [chain()]}
    table = _route_table(spec.routes, blocks, sites)
    plans = {
        fraction: skip_plan(steps, blocks, fraction, spec.skips)
        for fraction in spec.fractions
    }
    used = np.any([plan.any(0) for plan in plans.values()], axis=0)
    slots = tuple(np.flatnonzero(used).tolist()) or False
    if slots and spec.skips != "same":
        slots = True
    group = None if spec.skips == "steps" else 1
    every_second = int8_attention(blocks=range(0, blocks, 2))
    also = [every_second] if spec.attention == "half" else []
    if spec.densities:
        also.append(
            sparse_attention(
                tau, approximate=spec.approximate, dense_steps=0.0, dense_blocks=()
            )
        )
    return {
        # A few steps round coarsely.
        (float(plan[1:].mean()) if spec.skips == "steps" else fraction): [
            chain(
                fixed(skip=plan, route=table)._replace(skips=slots, group=group), *also
            )
        ]
        for fraction, plan in plans.items()
    }


def replayed(
    path: Path, blocks: int, sites: int, only: Route | None = None
) -> tuple[float, list[Policy]]:
    """The decisions of a trace, for a model of any number of blocks.

    Args:
      path: an .npz with `skip` [steps, branches, L'] and `route`
        [steps, branches, L', S]; block b takes the decisions of block b L' / L.
      blocks, sites: of the model.
      only: this route everywhere, and the skips of the trace.

    Returns:
      The fraction of all blocks that is skipped, and a policy per guidance branch.

    Raises:
      ValueError: the arrays are missing or do not fit.
    """
    with np.load(path) as file:
        if missing := {"skip", "route"} - set(file.files):
            raise ValueError(
                f"{path}: expected the arrays skip and route, no {missing}"
            )
        skip, route = file["skip"].astype(bool), file["route"].astype(np.int32)
    if only is not None:
        route = np.full_like(route, only)
    if skip.ndim != 3 or route.shape != (*skip.shape, sites):
        raise ValueError(
            f"{path}: expected skip [steps, branches, blocks] and route with {sites} "
            f"sites more, found {skip.shape} and {route.shape}"
        )
    source = np.arange(blocks) * skip.shape[2] // blocks
    skip, route = skip[:, :, source], route[:, :, source]
    slots = tuple(np.flatnonzero(skip.any((0, 1))).tolist()) or False
    # Blocks that are always skipped together share one delta.
    group = None if slots and (skip.all(2) == skip.any(2)).all() else 1
    used = tuple(Route(r) for r in np.unique(route))
    found = [
        fixed(skip=skip[:, branch], route=route[:, branch])._replace(
            skips=slots if group else True, routes=used, group=group
        )
        for branch in range(skip.shape[1])
    ]
    return float(skip.mean()), found
