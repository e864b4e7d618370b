"""The sampler: one compiled program from noise to latents.

`lax.scan` over the steps; inside, a scan over the guidance branches (`step`); inside,
the scan over blocks (`block_scan`). All decisions are made on the device. A run that is
watched has a `lax.while_loop` over the same steps, which a callback can end.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from sixbit_jax.nn.varying import vary, varying_axes
from sixbit_jax.sampling import watch
from sixbit_jax.sampling.mesh import anywhere, on_mesh
from sixbit_jax.sampling.pair import ModelPair
from sixbit_jax.sampling.program import Inputs, Program
from sixbit_jax.sampling.step import (
    Carry,
    Row,
    Stepper,
    prepare_prompts,
    with_first_frames,
)
from sixbit_jax.sampling.trace import SampleResult, Trace


def run_program(
    program: Program,
    graph: nnx.GraphDef,
    params: nnx.State | ModelPair,
    inputs: Inputs,
) -> SampleResult:
    """The whole sampling run as a pure function; jit it, or `vmap` over inputs.

    Under `vmap` a skip becomes a select: the numbers are the same, the time is not.

    Args:
      program: static description.
      graph, params: `nnx.split` of the model, or `split_pair` of two.
      inputs: prompt embeddings, noise, policy state.

    Returns:
      The final latents and the trace.
    """
    # The caller may have JAX refuse implicit broadcasts in code of their own.
    with jax.numpy_rank_promotion("allow"):
        if program.mesh is None:
            return _run(program, graph, params, inputs)
        return on_mesh(_run, program, graph, params, inputs)


def _run(program: Program, graph, params, inputs: Inputs) -> SampleResult:
    networks, ends = [params], [program.num_steps]
    if isinstance(params, ModelPair):
        assert program.switch is not None
        networks, ends = [*params], [program.switch, program.num_steps]
    axes = varying_axes(params, inputs)
    carry, rows, first, stopped = None, [], 0, vary(jnp.zeros((), bool), axes)
    done = vary(jnp.int32(0), axes)
    for state, end in zip(networks, ends, strict=True):
        if end == first:
            continue
        network = nnx.merge(graph, state)
        prompts = prepare_prompts(network, inputs, program)
        stepper = Stepper(program, inputs, network, prompts, first, axes)
        start = stepper.start(carry)
        if program.watched:
            carry, row, done, stopped = _watched_steps(
                stepper, start, end, done, stopped
            )
        else:
            carry, row = jax.lax.scan(stepper, start, jnp.arange(first, end))
        rows.append(row)
        first = end
    assert carry is not None
    row = jax.tree.map(
        lambda *parts: jnp.concatenate(parts) if len(parts) > 1 else parts[0], *rows
    )
    latents = with_first_frames(carry.latents, inputs)[:, program.extra_frames :]
    return SampleResult(latents, _trace(inputs, row), done if program.watched else None)


def _trace(inputs: Inputs, row: Row) -> Trace:
    stats = row.stats
    return Trace(
        timestep=inputs.timesteps,
        skip=row.skip,
        refresh=row.refresh,
        route=stats.route,
        gamma=stats.gamma,
        delta_change=stats.delta_change,
        outlier=stats.outlier,
        error=stats.error,
        output_change=row.change,
        int8_scores=row.int8_scores,
        attention_density=jnp.asarray(stats.attention_density),
    )


def _watched_steps(
    stepper: Stepper, start: Carry, end: int, done: Array, stopped: Array
) -> tuple[Carry, Row, Array, Array]:
    """The steps of one network, until a callback ends them.

    Returns:
      The carry, the rows of the trace (zeros for steps that did not run), the steps
      that are done, and whether the run was ended.
    """
    program, first = stepper.program, stepper.first
    token = stepper.inputs.watcher
    assert token is not None
    empty = jax.tree.map(
        lambda leaf: jnp.zeros((end - first, *leaf.shape), leaf.dtype),
        jax.eval_shape(stepper, start, jnp.int32(first))[1],
    )

    def going_on(state: tuple[Any, ...]) -> Array:
        _, _, done, stopped = state
        return (done < end) & ~stopped

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, rows, done, _ = state
        carry, row = stepper(carry, done)
        rows = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_index_in_dim(
                whole, part, done - first, 0
            ),
            rows,
            row,
        )
        # One number of the step's result makes the report wait for the step.
        finished = carry.latents.reshape(-1)[0]
        stop = watch.report(token, done + 1, program.num_steps, finished)
        stop = anywhere(stop, program.mesh)
        return vary((carry, rows, done + 1, stop), stepper.axes)

    return jax.lax.while_loop(
        going_on, step, (start, vary(empty, stepper.axes), done, stopped)
    )


__all__ = ["Inputs", "Program", "run_program"]
