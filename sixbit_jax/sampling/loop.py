"""The sampler: one compiled program from noise to latents.

`lax.scan` over the steps; inside, a scan over the guidance branches; inside, the scan
over blocks (`block_scan`). All decisions are made on the device.
"""

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sixbit_jax.nn.site import SiteOptions, relative_l1
from sixbit_jax.policies.base import (
    Plan,
    PolicyState,
    Stats,
    StepIndex,
    full_precision_plan,
)
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.block_scan import CacheLayout, scan_blocks
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.pair import ModelPair
from sixbit_jax.sampling.schedulers.base import Scheduler
from sixbit_jax.sampling.trace import SampleResult, Trace


@dataclass(frozen=True)
class Program:
    """Everything static of a sampling program: the key of its compilation.

    Attributes:
      scheduler: the sampler's update rule.
      num_steps: denoising steps.
      plan, update: the policy's pure functions.
      site: routes in the program, and what is measured.
      layout: which blocks have a slot in the delta cache.
      branches: guidance branches with a plan of their own (2: sequential guidance).
      guided: whether there is an unconditional prediction.
      dtype: compute dtype of the network.
      progress: draw a progress bar on standard error.
      switch: the first step of the second network of a pair.
    """

    scheduler: Scheduler
    num_steps: int
    plan: Any
    update: Any
    site: SiteOptions
    layout: CacheLayout
    branches: int
    guided: bool
    dtype: Any
    progress: bool
    switch: int | None = None


class Inputs(NamedTuple):
    """The traced arguments of a program.

    Attributes:
      text: prompt embeddings per branch; sequential guidance: [2, batch, T, E]
        (conditional first), batched: [1, 2 batch, T, E], none: [1, batch, T, E].
      noise: initial latents, [batch, F, C, H, W].
      key: for schedulers that add noise.
      guidance_scale: of each step, [steps].
      policy_state: leaves with a leading branch axis.
      image_latents: extra input channels of I2V models, or None.
      ofs: extra scalar of CogVideoX1.5 I2V, or None.
      scheduler_state: from `scheduler.init`.
      timesteps: [steps].
      image_embeds: image tokens of Wan2.1 I2V, or None.
      first_frames: clean latents of the first frames (Wan2.2 TI2V), or None.
    """

    text: Float[Array, "branches rows T E"]
    noise: Float[Array, "batch F C H W"]
    key: Array
    guidance_scale: Float[Array, "steps"]
    policy_state: PolicyState
    image_latents: Float[Array, "batch F C2 H W"] | None
    ofs: Float[Array, ""] | None
    scheduler_state: Any
    timesteps: Int[Array, "steps"] | Float[Array, "steps"]
    image_embeds: Float[Array, "batch I E2"] | None = None
    first_frames: Float[Array, "batch F0 C H W"] | None = None


class _Carry(NamedTuple):
    latents: Array
    scheduler_state: Any
    policy_state: PolicyState
    cache: delta_cache.DeltaCache | None
    output: Array
    latent_change: Array


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
    networks, ends = [params], [program.num_steps]
    if isinstance(params, ModelPair):
        assert program.switch is not None
        networks, ends = [*params], [program.switch, program.num_steps]
    carry, rows, first = None, [], 0
    for state, end in zip(networks, ends, strict=True):
        if end == first:
            continue
        model = nnx.merge(graph, state)
        carry, row = _run_steps(program, model, inputs, carry, (first, end))
        rows.append(row)
        first = end
    assert carry is not None
    skip, refresh, int8_scores, stats, change = jax.tree.map(
        lambda *parts: jnp.concatenate(parts) if len(parts) > 1 else parts[0], *rows
    )
    trace = Trace(
        timestep=inputs.timesteps,
        skip=skip,
        refresh=refresh,
        route=stats.route,
        gamma=stats.gamma,
        delta_change=stats.delta_change,
        outlier=stats.outlier,
        error=stats.error,
        output_change=change,
        int8_scores=int8_scores,
    )
    return SampleResult(_with_first_frames(carry.latents, inputs), trace)


def _run_steps(
    program: Program,
    model: Any,
    inputs: Inputs,
    carry: _Carry | None,
    span: tuple[int, int],
) -> tuple[_Carry, Any]:
    """The scan over the steps of one network.

    Args:
      program, inputs: of the run.
      model: the network.
      carry: what the network before left, or None. Latents and scheduler go on; policy
        and cache start again, for deltas and statistics are of one network.
      span: first step, and the step after the last.

    Returns:
      The carry, and the rows of the trace.
    """
    first, end = span
    batch = inputs.noise.shape[0]
    num_blocks, num_sites = model.num_blocks, len(model.sites)
    timesteps, rows = inputs.timesteps, inputs.text.shape[1]
    # Given only where there is one: not every network has it.
    extra: dict[str, Any] = {}
    if inputs.ofs is not None:
        extra["ofs"] = jnp.full((rows,), inputs.ofs)
    if inputs.first_frames is not None:
        extra["clean_frames"] = inputs.first_frames.shape[1]
    prompts = _prompts(model, inputs, program.dtype)

    def forward(latents, text, timestep, plan, cache, branch):
        x = _with_first_frames(latents, inputs).astype(program.dtype)
        if inputs.image_latents is not None:
            x = jnp.concatenate([x, inputs.image_latents.astype(program.dtype)], 2)
        x = jnp.concatenate([x] * (rows // batch))
        time = jnp.full((rows,), timestep, jnp.float32)
        tokens, conditioning = model.embed(x, text, time, **extra)
        tokens, cache, stats = scan_blocks(
            model.block_stack,
            tokens,
            conditioning,
            plan,
            cache,
            branch * program.layout.num_slots,
            layout=program.layout,
            options=program.site,
        )
        return model.unembed(tokens, conditioning, x.shape), cache, stats

    def step(carry: _Carry, index):
        where = StepIndex(index, jnp.int32(program.num_steps), carry.latent_change)
        timestep = timesteps[index]

        def branch(cache, xs):
            number, text, state = xs
            start = full_precision_plan(num_blocks, num_sites)
            plan = program.plan(state, where, start)
            if first:
                # There is no delta of this network yet.
                plan = plan._replace(skip=plan.skip & (index > first))
            output, cache, stats = forward(
                carry.latents, text, timestep, plan, cache, number
            )
            return cache, (output.astype(jnp.float32), plan, stats)

        cache, (outputs, plans, stats) = jax.lax.scan(
            branch,
            carry.cache,
            (jnp.arange(program.branches), prompts, carry.policy_state),
        )
        output = _combine(program, inputs.guidance_scale[index], outputs)
        change = jnp.where(index > first, relative_l1(output, carry.output), jnp.inf)
        stats = stats._replace(
            output_change=jnp.full((program.branches,), change),
            latent_change=jnp.full((program.branches,), carry.latent_change),
            shared_change=jnp.broadcast_to(
                stats.delta_change.mean(0), stats.delta_change.shape
            ),
        )
        policy_state = _update(program, carry.policy_state, plans, stats)
        noise = None
        if program.scheduler.stochastic:
            noise = jax.random.normal(
                jax.random.fold_in(inputs.key, index), output.shape, jnp.float32
            )
        latents, scheduler_state = program.scheduler.step(
            carry.scheduler_state, index, output, carry.latents, noise
        )
        if program.progress:
            jax.debug.callback(_draw_progress, index + 1, program.num_steps)
        carry = _Carry(
            latents=latents,
            scheduler_state=scheduler_state,
            policy_state=policy_state,
            cache=cache,
            output=output,
            latent_change=relative_l1(latents, carry.latents),
        )
        int8_scores = plans.int8_scores
        if program.site.attention != "plan":
            everywhere = program.site.attention == "int8"
            int8_scores = jnp.full(int8_scores.shape, everywhere)
        row = (~stats.computed, plans.refresh, int8_scores, stats, change)
        return carry, row

    cache = None
    if program.layout.blocks:
        shape = jax.eval_shape(
            lambda: model.embed(
                jnp.zeros(_model_input(inputs, program), program.dtype),
                jax.tree.map(lambda x: x[0], prompts),
                jnp.zeros((rows,)),
                **extra,
            )[0]
        ).shape
        slots = program.branches * program.layout.num_slots
        cache = delta_cache.init(slots, shape, program.layout.cache_format)
    if carry is None:
        carry = _Carry(
            latents=inputs.noise,
            scheduler_state=inputs.scheduler_state,
            policy_state=inputs.policy_state,
            cache=cache,
            output=jnp.zeros(_output_shape(inputs, model), jnp.float32),
            latent_change=jnp.float32(0.0),
        )
    else:
        carry = carry._replace(policy_state=inputs.policy_state, cache=cache)
    return jax.lax.scan(step, carry, jnp.arange(first, end))


def _prompts(model, inputs: Inputs, dtype) -> Any:
    """What `model.embed` takes as a prompt, with a leading branch axis.

    Where the network reads the text by cross-attention, keys and values are made here,
    once for all steps.
    """
    text, image = inputs.text, inputs.image_embeds
    if not hasattr(model, "text_keys_values"):
        return text
    if image is not None:
        # Every guidance branch sees the image.
        image = jnp.concatenate([image] * (text.shape[1] // image.shape[0]))
    made = [model.text_keys_values(branch, image, dtype=dtype) for branch in text]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *made)


def _with_first_frames(latents: Array, inputs: Inputs) -> Array:
    """The latents with the given frames in place of those denoised there."""
    given = inputs.first_frames
    if given is None:
        return latents
    return jnp.concatenate(
        [given.astype(latents.dtype), latents[:, given.shape[1] :]], 1
    )


def _model_input(inputs: Inputs, program: Program) -> tuple[int, ...]:
    _, frames, channels, height, width = inputs.noise.shape
    if inputs.image_latents is not None:
        channels += inputs.image_latents.shape[2]
    return inputs.text.shape[1], frames, channels, height, width


def _output_shape(inputs: Inputs, model) -> tuple[int, ...]:
    batch, frames, _, height, width = inputs.noise.shape
    return batch, frames, model.config.out_channels, height, width


def _combine(program: Program, scale: Array, outputs: Array) -> Array:
    """The guided prediction from [branches, rows, F, C, H, W] outputs."""
    flat = outputs.reshape(-1, *outputs.shape[2:])
    if not program.guided:
        return flat
    conditional, unconditional = jnp.split(flat, 2)
    return guide(conditional, unconditional, scale)


def _update(
    program: Program, state: PolicyState, plans: Plan, stats: Stats
) -> PolicyState:
    """Each branch's policy learns from its own stats."""
    updated = []
    for branch in range(program.branches):
        one = jax.tree.map(lambda x, i=branch: x[i], (state, plans, stats))
        updated.append(program.update(*one))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *updated)


def _draw_progress(done, count) -> None:
    done, count = int(done), int(count)
    filled = round(30 * done / count)
    end = "\n" if done == count else ""
    bar = "#" * filled + "." * (30 - filled)
    print(f"\r[{bar}] step {done}/{count}", end=end, file=sys.stderr, flush=True)
