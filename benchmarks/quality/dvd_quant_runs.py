"""The programs behind the DVD-Quant table: uniform weights, ARQ routes, delta-GBS."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.quality.policies import Setting, num_steps, switched
from benchmarks.quality.runs import Kind, Study, Task
from sixbit_jax import NVFP4Recipe, quantize
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.formats import StoredWeight
from sixbit_jax.policies import (
    BlockGrid,
    Policy,
    chain,
    delta_gbs,
    fixed,
    step_cache,
    tdc,
)
from sixbit_jax.quantizers.uniform import UniformRecipe, smooth_quantize
from sixbit_jax.routes import Route
from sixbit_jax.tuning.observe import observe
from sixbit_jax.tuning.trajectories import record_trajectories

ROTATION = 128
RECIPES = {
    "minmax": UniformRecipe(rotation=0, grid="minmax"),
    "bgr": UniformRecipe(rotation=0, grid="bgr"),
    "minmax_rotated": UniformRecipe(rotation=ROTATION, grid="minmax"),
    "bgr_rotated": UniformRecipe(rotation=ROTATION, grid="bgr"),
    "nvfp4": NVFP4Recipe(rotation=ROTATION),
    "nvfp4_refined": NVFP4Recipe(rotation=ROTATION, refine=True),
}
SMOOTH = "smooth"


@dataclass(frozen=True)
class DvdKind(Kind):
    """A program: which weights, routes and caches it holds.

    Attributes:
      weights: a key of `RECIPES`, `SMOOTH`, or "full".
      routes: that its plans may hold.
      arq_block: channels that share a live scale.
      cached: whether steps and blocks may be skipped.
    """

    routes: tuple[Route, ...] = (Route.BF16,)
    arq_block: int = 128
    cached: bool = False


@dataclass(frozen=True)
class DvdSetting(Setting):
    """Numbers of one configuration; see `Setting`.

    Attributes:
      delta: the delta of delta-GBS; None: the routes of `route`.
      low, high: its routes.
    """

    delta: float | None = None
    low: Route = Route.BF16
    high: Route = Route.BF16


def dvd_policy(setting: DvdSetting, grid: BlockGrid, kind: DvdKind) -> Policy:
    """The policy of a setting; all settings of a kind have one structure."""
    steps, blocks, sites = num_steps(grid), grid.num_blocks, len(grid.sites)
    route = np.broadcast_to(np.asarray(setting.route, int), (steps, blocks, sites))
    # `low` and `high` are arrays in the state, so any pair has the same structure.
    switching = delta_gbs(setting.delta or 0.0, low=setting.low, high=setting.high)
    parts = [
        switched(fixed(route=route), True),
        switched(switching, setting.delta is not None),
    ]
    if kind.cached:
        use_cache, use_tdc = setting.step_cache is not None, setting.tau is not None
        parts += [
            switched(step_cache(setting.step_cache or 0.0), use_cache),
            switched(tdc(setting.tau or 0.0, together=None), use_tdc),
        ]
    return chain(*parts)._replace(routes=kind.routes, skips=kind.cached)


class DvdStudy(Study):
    """`Study` with the kinds of this table.

    Args:
      model, latent_shape, options: as in `Study`.
      calibration: captions whose activations SmoothQuant sees.
    """

    def __init__(self, model, latent_shape, options, calibration: Task):
        super().__init__(model, latent_shape, options, rotation=ROTATION)
        self._calibration = calibration

    def model(self, kind: Kind) -> Any:
        """The network with the weights of a kind of program."""
        if kind.weights not in self._models:
            full = self._models["full"]
            if kind.weights == SMOOTH:
                made = smooth_quantize(full, self.maxima(), RECIPES["minmax"])
            else:
                made = quantize(full, RECIPES[kind.weights])
            self._models[kind.weights] = made
        return self._models[kind.weights]

    def maxima(self, examples: int = 64) -> dict[str, Any]:
        """Largest magnitudes of every channel on full-precision trajectories."""
        options = self.options
        captions = self._calibration.captions[:4]
        found = record_trajectories(
            self._models["full"],
            self.scheduler,
            encode_captions(captions),
            None if options.guidance_scale == 1.0 else self._null,
            latent_shape=self.latent_shape,
            num_steps=options.num_steps,
            guidance_scale=options.guidance_scale,
            batch=len(captions),
            dtype=options.dtype,
        )
        chosen = np.linspace(0, len(found) - 1, min(examples, len(found))).astype(int)
        return observe(
            self._models["full"],
            [found.batch(chosen)],
            lambda name, x: abs(x.astype(np.float32)).max((0, 1)),
            dtype=options.dtype,
        )

    def policy(self, kind: Kind, setting: Setting) -> Policy:
        """The policy that a program of `kind` runs with."""
        if not isinstance(kind, DvdKind):
            raise TypeError(f"expected a kind of this table, found {kind}")
        if not isinstance(setting, DvdSetting):
            # `Study.compile` asks for the structure with the default setting.
            setting = DvdSetting(route=setting.route)
        return dvd_policy(setting, self.grid, kind)

    def _prepare(self, kind: Kind, setting: Setting):
        found = super()._prepare(kind, setting)
        block = kind.arq_block if isinstance(kind, DvdKind) else 128
        site = replace(found.program.site, arq_block=block)
        return found._replace(program=replace(found.program, site=site))

    def compile(self, kinds: Sequence[Kind]) -> None:
        """Kinds that differ only in the values of the weights share a program."""
        missing = [kind for kind in dict.fromkeys(kinds) if kind not in self._compiled]
        first: dict[Any, Kind] = {self._structure(kind): kind for kind in missing[::-1]}
        super().compile([kind for kind in missing if kind in first.values()])
        for kind in missing:
            if kind not in self._compiled:
                program, _, params, _ = self._prepare(kind, DvdSetting())
                run = self._compiled[first[self._structure(kind)]][2]
                self._compiled[kind] = (program, params, run)

    def _structure(self, kind: Kind) -> Any:
        program, graph, params, _ = self._prepare(kind, DvdSetting())
        leaves, tree = jax.tree.flatten(params)
        return program, graph, tree, tuple((x.shape, x.dtype) for x in leaves)

    def weight_bytes(self, kind: Kind) -> int:
        """Stored bytes of all parameters; full precision counts as bf16."""
        leaves = jax.tree.leaves(
            nnx.state(self.model(kind), nnx.Param), is_leaf=_is_stored
        )
        return sum(x.nbytes if _is_stored(x) else 2 * x.size for x in leaves)


def _is_stored(leaf: Any) -> bool:
    return isinstance(leaf, StoredWeight)
