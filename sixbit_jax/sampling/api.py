"""`sample`: the public entry to the sampler; checks, then runs the compiled program."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sixbit_jax.policies import Policy
from sixbit_jax.sampling import checks, watch
from sixbit_jax.sampling.grid import block_grid, is_quantized
from sixbit_jax.sampling.loop import run_program
from sixbit_jax.sampling.mesh import compiler_options
from sixbit_jax.sampling.option_names import refuse
from sixbit_jax.sampling.options import Conditions, Execution, Guidance, Noise, Prompt
from sixbit_jax.sampling.prepare import Prepared, prepare
from sixbit_jax.sampling.schedulers.base import Scheduler
from sixbit_jax.sampling.trace import SampleResult

run_jitted = partial(jax.jit, static_argnums=(0, 1))(run_program)
"""`run_program` compiled once per (program, model structure, shapes)."""


@cache
def _run_with(options: tuple[tuple[str, Any], ...]) -> Any:
    """`run_jitted` under other options of the compiler."""
    compiled = partial(jax.jit, static_argnums=(0, 1), compiler_options=dict(options))
    return compiled(run_program)


def run_prepared(prepared: Prepared) -> SampleResult:
    """Runs the program on its device or mesh, compiled as it is best for those."""
    options = compiler_options(prepared.program.mesh)
    if options is None:
        return run_jitted(*prepared)
    return _run_with(tuple(options.items()))(*prepared)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run.

    Attributes:
      result: what was finished: the latents after the last step, and its trace.
    """

    def __init__(self, result: SampleResult):
        super().__init__(f"sample: interrupted after {result.steps_done} steps")
        self.result = result


def sample(
    model: Any,
    scheduler: Scheduler,
    prompt: Prompt | Float[Array | np.ndarray, "batch T E"],
    *,
    latent_shape: tuple[int, int, int, int],
    num_steps: int | None = None,
    guidance: Guidance | float | None = None,
    conditions: Conditions | None = None,
    policy: Policy | None = None,
    execution: Execution | None = None,
    seed: Any = 0,
    noise: Noise | Float[Array | np.ndarray, "batch F C H W"] | None = None,
    on_step: watch.OnStep | None = None,
    mesh: Mesh | None = None,
    **unknown: Any,
) -> SampleResult:
    """Denoises a batch of videos in one compiled program.

    A second call with other prompts, seeds, guidance scales, weights or policy numbers
    of the same structure does not compile again. All videos of the batch share one
    plan; with sequential guidance each guidance branch has its own.

    Args:
      model: a ported transformer, e.g. from `sixbit_jax.load`.
      scheduler: e.g. `CogVideoXDDIM`; must be for what the network predicts.
      prompt: embeddings of prompts and negative prompts; an array is a prompt without
        a negative one.
      latent_shape: (F, C, H, W) of one video's latents.
      num_steps: denoising steps; None is the network's published number, or that of a
        given schedule (`with_sigmas`).
      guidance: classifier-free guidance, or its scale; None is the published scale.
      conditions: images, first frames, a second network: what the network takes.
      policy: who decides routes and skips; None is full precision.
      execution: dtype, attention, cache format, batched guidance, kernels, progress.
      seed: the seed of the initial noise and of stochastic schedulers, 0 to 2^64 - 1.
      noise: initial latents instead of seeded ones, or `Noise`. What seed s draws
        (`initial_noise`), given with seed s, is the run of seed s.
      on_step: called after each step with (steps that are done, all steps); the run
        ends where it returns true. With it, or with `Execution(progress=True)`, Ctrl-C
        ends the run at the next step, and `sample` returns when the run is over.
      mesh: the devices that share the run, with axes `guidance`, `sequence`, `fsdp`
        (`sixbit_jax.make_mesh`); None is one device. The numbers are the same.

    Returns:
      `SampleResult(latents, trace)`; `steps_done` says where a callback ended it, and
      the trace has as many steps.

    Raises:
      TypeError: for an unknown option; names the one that was meant.
      ValueError: for inputs that do not fit; lists all of them.
      Interrupted: a `KeyboardInterrupt` that holds what was finished.

    >>> import sixbit_jax
    >>> from sixbit_jax.demo import text
    >>> from sixbit_jax.demo.model import COGVIDEOX
    >>> result = sixbit_jax.sample(
    ...     COGVIDEOX.new(0, {"num_layers": 2}), sixbit_jax.CogVideoXDDIM(),
    ...     text.encode_captions(["a red circle"]), latent_shape=(2, 3, 32, 32),
    ...     num_steps=4, guidance=1.0, policy=sixbit_jax.fixed(skip=[0, 0, 1, 0]),
    ... )
    >>> result.latents.shape, result.trace.skip[:, 0, 0].tolist()
    ((1, 2, 3, 32, 32), [False, False, True, False])
    """
    if unknown:
        refuse(unknown)
    prepared = prepare(
        model,
        scheduler,
        prompt,
        latent_shape=latent_shape,
        num_steps=num_steps,
        guidance=guidance,
        conditions=conditions,
        policy=policy,
        execution=execution,
        seed=seed,
        noise=noise,
        on_step=on_step,
        mesh=mesh,
    )
    traced = any(map(checks.is_traced, jax.tree.leaves(prepared[2:])))
    if prepared.inputs.watcher is None or traced:
        return run_prepared(prepared)
    return _watched(prepared)


def _watched(prepared: Prepared) -> SampleResult:
    """Runs a program that a callback or Ctrl-C may end."""
    token = int(prepared.inputs.watcher)  # pyrefly: ignore[bad-argument-type]
    watcher = watch.watcher_of(token)
    try:
        with watcher.catching_interrupts():
            result = jax.block_until_ready(run_prepared(prepared))
    finally:
        watch.forget(token)
    done = int(result.steps_done)
    trace = jax.tree.map(lambda leaf: leaf[:done], result.trace)
    result = SampleResult(result.latents, trace, done)
    if watcher.interrupted or isinstance(watcher.error, KeyboardInterrupt):
        raise Interrupted(result) from watcher.error
    if watcher.error is not None:
        raise watcher.error
    return result


__all__ = [
    "Interrupted",
    "Prepared",
    "block_grid",
    "is_quantized",
    "prepare",
    "run_jitted",
    "sample",
]
