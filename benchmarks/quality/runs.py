"""Sampling many videos in few calls: one compiled program per kind, `vmap` inside.

Under `vmap` every sample has its own plan, and a skip or a route becomes a select:
the numbers of a run of its own, at the price of computing all branches. Nothing here
is a timing of the method.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.quality.policies import Setting, policy_of, recording_policy
from pallas_kernels.attention.api import Precision
from sixbit_jax import NVFP4Recipe, quantize
from sixbit_jax.demo import vocabulary
from sixbit_jax.demo.models import demo_of
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.models.network import PromptInputs
from sixbit_jax.policies import BlockGrid
from sixbit_jax.sampling.api import block_grid, prepare
from sixbit_jax.sampling.loop import Inputs, run_program
from sixbit_jax.sampling.options import Execution, Prompt
from sixbit_jax.sampling.schedulers import Scheduler
from sixbit_jax.sampling.trace import Trace

# Which inputs differ between samples; the rest is shared.
_AXES = Inputs(**dict.fromkeys(Inputs._fields, None))._replace(  # pyrefly: ignore
    text=0,  # pyrefly: ignore
    noise=0,  # pyrefly: ignore
    policy_state=0,
)


@dataclass(frozen=True)
class Kind:
    """What distinguishes compiled programs; settings share them.

    Attributes:
      weights: "full", "nvfp4", "nvfp4_unrotated" or "nvfp4_refined".
      cache_format: the storage format of the delta cache.
      dtype: compute dtype; None for that of the study.
      record: measure errors and outliers under INT8 (calibration).
      attention: precision of the scores, "bf16" or "int8".
      group: of the delta cache, see `Policy.group`; None where whole steps skip.
    """

    weights: str = "nvfp4"
    cache_format: str = "bf16"
    dtype: str | None = None
    record: bool = False
    attention: Precision = "bf16"
    group: int | None = 1

    @property
    def quantized(self) -> bool:
        """Whether the weights are NVFP4."""
        return self.weights != "full"


FULL = Kind("full")
FLOAT32 = Kind("full", dtype="float32")
QUANTIZED = Kind()
UNROTATED = Kind("nvfp4_unrotated")
REFINED = Kind("nvfp4_refined")
RECORD = Kind(record=True)
ATTENTION_8_BIT = Kind(attention="int8")
FULL_STEPS = Kind("full", group=None)
REFINED_STEPS = Kind("nvfp4_refined", group=None)
ATTENTION_8_BIT_STEPS = Kind("nvfp4_refined", attention="int8", group=None)


@dataclass(frozen=True)
class Task:
    """What is sampled.

    Attributes:
      captions: one per sample.
      noise: initial latents, float32 [samples, F, C, H, W].
    """

    captions: tuple[str, ...]
    noise: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, indices: Sequence[int]) -> "Task":
        """Some of the samples; an index may repeat."""
        chosen = tuple(self.captions[i] for i in indices)
        return Task(chosen, self.noise[np.asarray(indices)])


def make_task(attributes, seeds: Sequence[int], latent_shape) -> Task:
    """Every caption with every seed; the noise depends on both."""
    captions = [vocabulary.caption_of(row) for row in attributes]
    noise = [
        np.random.default_rng([seed, number]).standard_normal(latent_shape, np.float32)
        for seed in seeds
        for number in range(len(captions))
    ]
    return Task(tuple(captions) * len(seeds), np.stack(noise))


class Samples(NamedTuple):
    """Latents float32 [samples, F, C, H, W]; the trace has a leading sample axis."""

    latents: np.ndarray
    trace: Trace


@dataclass(frozen=True)
class Options:
    """How every video is sampled."""

    num_steps: int = 50
    guidance_scale: float = 6.0
    batch: int = 32
    dtype: str = "bfloat16"


class Study:
    """A model, its quantized forms, and the compiled programs over them.

    Args:
      model: the network in full precision; its weights are those of the reference.
      latent_shape: (F, C, H, W).
      options: steps, guidance, batch and dtype.
      rotation: width of the Hadamard of the quantized forms.
      scheduler: of the sampler; None is what the network was trained with.
    """

    def __init__(
        self,
        model,
        latent_shape,
        options: Options,
        *,
        rotation: int = 128,
        scheduler: Scheduler | None = None,
    ):
        self.latent_shape, self.options = latent_shape, options
        self.scheduler = demo_of(model).scheduler() if scheduler is None else scheduler
        self.grid: BlockGrid = block_grid(model)._replace(num_steps=options.num_steps)
        self.rotation = rotation
        self._models = {"full": model}
        self._null = encode_captions([""])[0]
        self._compiled: dict[Kind, tuple[Any, Any, Any]] = {}

    def model(self, kind: Kind) -> Any:
        """The network with the weights of a kind of program."""
        if kind.weights not in self._models:
            recipe = {
                "nvfp4": NVFP4Recipe(rotation=self.rotation),
                "nvfp4_unrotated": NVFP4Recipe(rotation=0),
                "nvfp4_refined": NVFP4Recipe(rotation=self.rotation, refine=True),
            }[kind.weights]
            self._models[kind.weights] = quantize(self._models["full"], recipe)
        return self._models[kind.weights]

    def policy(self, kind: Kind, setting: Setting):
        """The policy that a program of `kind` runs with."""
        if kind.record:
            return recording_policy()
        policy = policy_of(setting, self.grid, quantized=kind.quantized)
        return policy._replace(group=kind.group)

    def _prepare(self, kind: Kind, setting: Setting):
        text = self._null[None]
        guided = self.options.guidance_scale != 1.0
        return prepare(
            self.model(kind),
            self.scheduler,
            # As long as the prompts that the network was trained on.
            Prompt(text, text if guided else None, as_given=True),
            latent_shape=self.latent_shape,
            num_steps=self.options.num_steps,
            guidance=self.options.guidance_scale,
            noise=jnp.zeros((1, *self.latent_shape)),
            policy=self.policy(kind, setting),
            execution=Execution(
                cache_format=kind.cache_format,
                dtype=jnp.dtype(kind.dtype or self.options.dtype),
                attention=kind.attention,
                # Under vmap only the plain definitions run.
                kernels=False,
            ),
            outlier_stats=kind.record,
            record_errors=kind.record,
        )

    def compile(self, kinds: Sequence[Kind]) -> None:
        """Compiles programs side by side: XLA works outside Python's lock."""
        missing = [kind for kind in dict.fromkeys(kinds) if kind not in self._compiled]
        lowered = []
        for kind in missing:
            program, graph, params, inputs = self._prepare(kind, Setting())
            run = jax.vmap(partial(run_program, program, graph), in_axes=(None, _AXES))
            task = Task(("",) * self.options.batch, self._zeros())
            batch = self._batched(task, inputs, [_host(inputs.policy_state)])
            # GPUs multiply float32 in TF32 unless told otherwise.
            precision = "highest" if kind.dtype == "float32" else None
            with jax.default_matmul_precision(precision):
                made = jax.jit(run).lower(params, batch)
            lowered.append((kind, program, params, made))
        if not lowered:
            return
        with ThreadPoolExecutor(len(lowered)) as pool:
            compiled = list(pool.map(lambda entry: entry[3].compile(), lowered))
        for (kind, program, params, _), run in zip(lowered, compiled, strict=True):
            self._compiled[kind] = (program, params, run)

    def compiled(self, kind: Kind) -> Any:
        """The compiled program of a kind; several kinds may share one."""
        self.compile([kind])
        return self._compiled[kind][2]

    def _zeros(self) -> np.ndarray:
        return np.zeros((self.options.batch, *self.latent_shape), np.float32)

    def _batched(self, task: Task, inputs: Inputs, states: list) -> Inputs:
        """Inputs with a leading sample axis; one state for all, or one per sample."""
        text = encode_captions(task.captions)
        branches = [text, np.broadcast_to(self._null, text.shape)]
        stacked = np.stack(branches[: inputs.text.shape[0]], 1)[:, :, None]
        states = states * len(task) if len(states) == 1 else states
        return inputs._replace(
            text=jnp.asarray(stacked, inputs.text.dtype),
            noise=jnp.asarray(task.noise[:, None]),
            policy_state=jax.tree.map(lambda *leaves: np.stack(leaves), *states),
        )

    def run(self, kind: Kind, settings: Sequence[Setting], task: Task) -> Samples:
        """Samples a task.

        Args:
          kind: which program.
          settings: one for all samples, or one per sample.
          task: captions and noise; padded to whole batches inside.

        Returns:
          One entry per sample of the task.

        Raises:
          ValueError: another number of settings.
        """
        if len(settings) not in (1, len(task)):
            raise ValueError(
                f"expected 1 or {len(task)} settings, found {len(settings)}"
            )
        self.compile([kind])
        program, params, run = self._compiled[kind]
        # A setting may repeat over captions: its state is made once.
        unique: dict[int, Any] = {}
        _, _, _, inputs = self._prepare(kind, settings[0])
        for setting in settings:
            if id(setting) not in unique:
                found, _, _, own = self._prepare(kind, setting)
                if found != program:
                    raise ValueError(f"{setting} is not of the compiled structure")
                unique[id(setting)] = _host(own.policy_state)
        states = [unique[id(setting)] for setting in settings]
        parts = []
        for start in range(0, len(task), self.options.batch):
            rows = range(start, min(start + self.options.batch, len(task)))
            padded = [*rows, *[rows[-1]] * (self.options.batch - len(rows))]
            chosen = states if len(states) == 1 else [states[i] for i in padded]
            result = run(params, self._batched(task.take(padded), inputs, chosen))
            host = jax.tree.map(np.asarray, result)
            parts.append(jax.tree.map(itemgetter(slice(len(rows))), host))
        result = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return Samples(result.latents[:, 0], result.trace)

    def weight_bytes(self, kind: Kind) -> int:
        """Stored bytes of all parameters; full precision counts as bf16."""
        leaves = jax.tree.leaves(
            nnx.state(self.model(kind), nnx.Param), is_leaf=_is_nvfp4
        )
        return sum(x.nbytes if _is_nvfp4(x) else 2 * x.size for x in leaves)

    def num_parameters(self) -> int:
        """Parameters of the network."""
        return sum(x.size for x in jax.tree.leaves(nnx.state(self._models["full"])))

    def cache_bytes(self, kind: Kind) -> int:
        """Bytes of the delta caches of one video, all blocks and branches."""
        # Text tokens are in the residual stream of some networks and not of others.
        model, shape = self._models["full"], (1, *self.latent_shape)
        given = PromptInputs(self._null[None])

        def embedded() -> Any:
            prompt = model.prepare_prompt(given, dtype=jnp.float32)
            return model.embed(jnp.zeros(shape), prompt, jnp.zeros(1))[0]

        stream = jax.eval_shape(embedded)
        bits = {"bf16": 16, "float32": 32, "int8": 8, "nvfp4": 4.5}[kind.cache_format]
        branches = 1 if self.options.guidance_scale == 1.0 else 2
        return round(self.grid.num_blocks * branches * stream.size * bits / 8)


def _is_nvfp4(leaf: Any) -> bool:
    return isinstance(leaf, NVFP4Array)


def _host(state: Any) -> Any:
    """Leaves as NumPy arrays: strongly typed, and cheap to stack."""
    return jax.tree.map(np.asarray, state)
