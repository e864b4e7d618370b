"""Runs captions under a configuration, one video at a time, with honest timings."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.policies import (
    BlockGrid,
    Policy,
    activation_bits,
    attention_density,
    effective_bits,
    route_shares,
    skip_fraction,
)
from sixbit_jax.policies.policy_file import PolicyFile
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.api import Prepared, block_grid, prepare, run_jitted
from sixbit_jax.sampling.options import Conditions, Execution, Prompt
from sixbit_jax.sampling.pair import LowNoise
from sixbit_jax.sampling.program import Inputs, Program
from sixbit_jax.sampling.rows import conditions_of, prompt_fields_of
from sixbit_jax.sampling.schedulers import Scheduler
from sixbit_jax.sampling.trace import Trace


@dataclass(frozen=True)
class Configuration:
    """What a comparison compares.

    Attributes:
      name: short, for labels and file names.
      model: the network, with its weights.
      policy: who chooses routes and skips.
      cache_format: storage of the delta cache.
      description: one line for the report.
      policy_file: where the policy's numbers come from, for the report.
      low_noise: the second network of a pair; `model` is then the one for high noise.
    """

    name: str
    model: Any
    policy: Policy
    cache_format: str = "bf16"
    description: str = ""
    policy_file: PolicyFile | None = None
    low_noise: LowNoise | None = None

    def conditions(self, given: Conditions | None) -> Conditions:
        """What the network is given, with the second network of a pair."""
        given = given or Conditions()
        return (
            given
            if self.low_noise is None
            else replace(given, low_noise=self.low_noise)
        )

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all parameters, of both networks of a pair."""
        low = 0 if self.low_noise is None else parameter_bytes(self.low_noise.model)
        return parameter_bytes(self.model) + low


@dataclass(frozen=True)
class Run:
    """What a configuration made of the prompts.

    Attributes:
      configuration: what ran.
      grid: blocks, sites and multiply-accumulates.
      latents: float32 [prompts, F, C, H, W].
      traces: one per prompt, NumPy arrays.
      seconds: wall time of each video, compilation not included.
      compile_seconds: wall time of the one compilation.
      weight_bytes: stored bytes of all parameters.
      cache_bytes: bytes of the delta cache.
      temporary_bytes: what the compiled program allocates besides its arguments.
    """

    configuration: Configuration
    grid: BlockGrid
    latents: Float[np.ndarray, "prompts F C H W"]
    traces: tuple[Trace, ...]
    seconds: tuple[float, ...]
    compile_seconds: float
    weight_bytes: int
    cache_bytes: int
    temporary_bytes: int

    @property
    def name(self) -> str:
        """Name of the configuration."""
        return self.configuration.name

    def cost(self) -> dict[str, float]:
        """Bits, skips, shares of routes, INT8 scores and keys, over all that ran."""
        route = np.stack([trace.route for trace in self.traces])
        skip = np.stack([trace.skip for trace in self.traces])
        shares = route_shares(route, skip, self.grid)
        density = np.stack([trace.attention_density for trace in self.traces])
        scores = np.stack([trace.int8_scores for trace in self.traces])[~skip]
        return {
            "activation_bits": activation_bits(route, skip, self.grid),
            "effective_bits": effective_bits(route, skip, self.grid),
            "skip_fraction": skip_fraction(skip),
            **{f"share_{r.name.lower()}": share for r, share in shares.items()},
            "share_int8_scores": float(scores.mean()) if scores.size else 0.0,
            "density": attention_density(density, skip),
        }


def parameter_bytes(model: nnx.Module) -> int:
    """Stored bytes of all parameters; 4-bit codes count two to a byte."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _cache_bytes(model: Any, program: Program, inputs: Inputs) -> int:
    """Bytes of the delta cache that the program carries."""
    if not program.layout.blocks:
        return 0
    _, frames, _, height, width = inputs.noise.shape
    tokens = math.prod(model.config.token_grid(frames, height, width))
    _, rows, text, _ = inputs.text.shape
    if model.description.conditions.prompt.stream is None:
        text = 0
    cache = jax.eval_shape(
        lambda: delta_cache.init(
            program.branches * program.layout.num_slots,
            (rows, text + tokens, model.config.dim),
            program.layout.cache_format,
        )
    )
    return delta_cache.nbytes(cache)


class _Compiled(NamedTuple):
    """One program for all prompts.

    Attributes:
      run: (parameters, inputs) -> result.
      seconds: how long compiling took.
      temporary_bytes, cache_bytes: see `Run`.
    """

    run: Any
    seconds: float
    temporary_bytes: int
    cache_bytes: int


def _compile(model: Any, prepared: Prepared) -> _Compiled:
    began = time.perf_counter()
    compiled = run_jitted.lower(*prepared).compile()
    seconds = time.perf_counter() - began
    analysis = compiled.memory_analysis()
    return _Compiled(
        compiled,
        seconds,
        int(analysis.temp_size_in_bytes) if analysis else 0,
        _cache_bytes(model, prepared.program, prepared.inputs),
    )


def _prompt(
    embeds: np.ndarray, negative: Any, fields: Any, number: int, as_given: bool
) -> Prompt:
    """One prompt, as a batch of one."""
    if negative is not None:
        negative = jnp.asarray(negative, jnp.float32)[None]
    more = prompt_fields_of(fields or {}, number)
    return Prompt(jnp.asarray(embeds[None]), negative, as_given=as_given, **more)


def run_prompts(
    configuration: Configuration,
    scheduler: Scheduler,
    prompts: Float[Array | np.ndarray, "prompts T E"],
    negative: Float[Array | np.ndarray, "T E"] | None,
    *,
    latent_shape: tuple[int, int, int, int],
    seed: int = 0,
    execution: Execution | None = None,
    conditions: Conditions | None = None,
    as_given: bool = False,
    prompt_fields: Mapping[str, Any] | None = None,
    on_video: Callable[[int], None] | None = None,
    **options: Any,
) -> Run:
    """Samples the prompts one after the other with one compiled program.

    Prompt i starts from the noise of seed + i, in every configuration.

    Args:
      configuration: what to run.
      scheduler: the sampler's update rule.
      prompts: prompt embeddings.
      negative: embedding of the negative prompt; None without guidance.
      latent_shape: (F, C, H, W).
      seed: the seed of the first prompt.
      execution: how the program computes; the configuration has its cache format.
      conditions: what the network takes besides, a row per prompt; the configuration
        has the second network of a pair.
      as_given: see `Prompt`.
      prompt_fields: masks and pooled embeddings, see `prompt_fields_of`.
      on_video: called with the number of each prompt before it runs.
      **options: of `sixbit_jax.prepare`.

    Returns:
      Latents, traces and timings.

    Raises:
      ValueError: for options that do not fit, and for latents that are not finite.
    """
    cache_format = configuration.cache_format
    execution = replace(execution or Execution(), cache_format=cache_format)
    latents, traces, seconds, compiled = [], [], [], None
    for number, prompt in enumerate(np.asarray(prompts, np.float32)):
        prepared = prepare(
            configuration.model,
            scheduler,
            _prompt(prompt, negative, prompt_fields, number, as_given),
            latent_shape=latent_shape,
            seed=(seed + number) % 2**64,
            policy=configuration.policy,
            execution=execution,
            conditions=conditions_of(configuration.conditions(conditions), number),
            **options,
        )
        if compiled is None:
            compiled = _compile(configuration.model, prepared)
        if on_video is not None:
            on_video(number)
        began = time.perf_counter()
        result = jax.block_until_ready(compiled.run(prepared.params, prepared.inputs))
        seconds.append(time.perf_counter() - began)
        jax.effects_barrier()
        latents.append(np.asarray(result.latents[0]))
        traces.append(jax.tree.map(np.asarray, result.trace))
    if compiled is None:
        raise ValueError("prompts: expected at least one, found none")
    if not np.isfinite(latents).all():
        raise ValueError(f"{configuration.name}: the latents are not finite")
    return Run(
        configuration=configuration,
        grid=block_grid(configuration.model),
        latents=np.stack(latents),
        traces=tuple(traces),
        seconds=tuple(seconds),
        compile_seconds=compiled.seconds,
        weight_bytes=configuration.weight_bytes,
        cache_bytes=compiled.cache_bytes,
        temporary_bytes=compiled.temporary_bytes,
    )
