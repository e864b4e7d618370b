"""`prepare`: what `sample` is asked for becomes the arguments of the program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sixbit_jax import meshes
from sixbit_jax.models.network import Description
from sixbit_jax.nn.axes import NO_AXES
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.policies import Policy, chain
from sixbit_jax.routes import Route
from sixbit_jax.sampling import checks, delta_cache, watch
from sixbit_jax.sampling.grid import block_grid, cache_layout, policy_states
from sixbit_jax.sampling.guidance import dynamic_guidance_scale
from sixbit_jax.sampling.mesh import placed_for, split_problems, spread_problems
from sixbit_jax.sampling.noise import draw, run_keys
from sixbit_jax.sampling.option_names import refuse
from sixbit_jax.sampling.options import Conditions, Execution, Guidance, Noise, Prompt
from sixbit_jax.sampling.pair import ModelPair, split_pair, switch_step
from sixbit_jax.sampling.program import Inputs, Program
from sixbit_jax.sampling.schedulers.base import Scheduler


class Prepared(NamedTuple):
    """The arguments of `run_program`.

    Attributes:
      program: static description.
      graph, params: those of the network, or of a pair.
      inputs: traced arguments.
    """

    program: Program
    graph: nnx.GraphDef
    params: nnx.State | ModelPair
    inputs: Inputs


class _Call(NamedTuple):
    """What `prepare` was asked for, with defaults filled in."""

    description: Description
    prompt: Prompt
    latent_shape: tuple[int, int, int, int]
    num_steps: int
    guidance: Guidance
    scale: Any
    conditions: Conditions
    policy: Policy
    execution: Execution
    noise: Noise
    mesh: Mesh | None = None

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional prediction; the first scale decides."""
        return checks.is_traced(self.scale) or bool(self.scale > 1)

    @property
    def branches(self) -> int:
        """Guidance branches with a plan of their own."""
        return 2 if self.guided and not self.execution.batched_guidance else 1

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """[batch, F, C, H, W] of the latents as they are computed."""
        frames, channels, height, width = self.latent_shape
        frames += self.description.extra_frames(frames)
        batch = int(np.shape(self.prompt.embeds)[0])
        return batch, frames, channels, height, width


def _problems(
    call: _Call, model: Any, scheduler: Scheduler, seed: Any, errors: bool
) -> list[str]:
    """All that does not fit."""
    spec = call.description.conditions
    low = call.conditions.low_noise
    second = None if low is None else low.guidance_scale
    wrong_scale = list(
        filter(None, checks.guidance_problems(spec, call.guidance, call.scale, second))
    )
    guided = not wrong_scale and call.guided
    mesh, config, shape = call.mesh, model.config, call.latent_shape
    sizes = list(checks.size_problems(call.description, config, shape))
    of_mesh = mesh is not None and meshes.mesh_problems(mesh, config, guided=guided)
    found: list[str | None] = [
        *checks.pair_problems(model, call.conditions),
        *checks.prompt_problems(
            spec.prompt, call.prompt, guided=guided, scale=call.scale
        ),
        *wrong_scale,
        *checks.schedule_problems(model, call.description, scheduler, call.num_steps),
        *sizes,
        *checks.seed_problems(seed),
        *checks.policy_problems(model, call.policy, errors),
        *(of_mesh or ()),
    ]
    if not sizes and np.ndim(call.prompt.embeds) == 3:
        frames = call.latent_shape[0]
        found += checks.condition_problems(spec, call.conditions, call.sizes, frames)
        found += checks.noise_problems(
            call.noise, call.sizes, call.num_steps, scheduler
        )
    return [problem for problem in found if problem is not None]


def _by_branch(call: _Call, first: Any, negative: Any) -> Array | None:
    """[branches, rows, ...] of something of the prompts."""
    if first is None:
        return None
    rows = jnp.asarray(first)
    if call.guided:
        other = rows if negative is None else jnp.asarray(negative)
        rows = jnp.concatenate([rows, other.astype(rows.dtype)])
    return rows.reshape(call.branches, -1, *rows.shape[1:])


def _texts(call: _Call) -> Array:
    """[branches, rows, T, E] of the prompts."""
    prompt, spec = call.prompt, call.description.conditions.prompt
    first, negative = jnp.asarray(prompt.embeds), _array(prompt.negative_embeds)
    if not prompt.as_given:
        first = spec.padded(first)
        negative = None if negative is None else spec.padded(negative)
    found = _by_branch(call, first, negative)
    assert found is not None
    return found


def _scales(call: _Call, timesteps: np.ndarray, switch: int | None) -> Array:
    """The guidance scale of each step."""
    if call.guidance.dynamic:
        scale = dynamic_guidance_scale(call.scale, timesteps, call.num_steps)
    else:
        scale = jnp.full((call.num_steps,), call.scale, jnp.float32)
    low = call.conditions.low_noise
    if low is None or low.guidance_scale is None or not call.guided:
        return scale
    return scale.at[switch:].set(low.guidance_scale)


def _image_latents(call: _Call) -> Array | None:
    """Image latents with the frames that are computed in front, as diffusers has it."""
    given = call.conditions.image_latents
    if given is None:
        return None
    given = jnp.asarray(given)
    missing = call.sizes[1] - given.shape[1]
    return given if not missing else jnp.concatenate([given[:, :missing], given], 1)


def _inputs(
    call: _Call,
    scheduler: Scheduler,
    seed: Any,
    switch: int | None,
    grid: Any,
    token: int | None,
) -> Inputs:
    """The traced arguments of the program."""
    spec, prompt = call.description.conditions, call.prompt
    first_key, key = run_keys(seed)
    noise = call.noise.initial
    if noise is None:
        noise = draw(first_key, call.sizes)
    noise = jnp.asarray(noise, jnp.float32)
    timesteps = scheduler.timesteps(call.num_steps)
    ofs, embedded = (
        default if value is None else value
        for value, default in (
            (call.conditions.ofs, spec.ofs),
            (call.guidance.embedded, spec.embedded_guidance),
        )
    )
    steps = call.noise.steps
    return Inputs(
        text=_texts(call),
        noise=noise,
        key=key,
        guidance_scale=_scales(call, timesteps, switch),
        policy_state=policy_states(call.policy, grid, call.branches),
        image_latents=_image_latents(call),
        ofs=None if ofs is None else jnp.asarray(ofs, jnp.float32),
        scheduler_state=scheduler.init(call.num_steps, noise.shape),
        # Flow matching may have timesteps between the integers.
        timesteps=jnp.asarray(
            timesteps, jnp.int32 if timesteps.dtype.kind == "i" else jnp.float32
        ),
        image_embeds=_array(call.conditions.image_embeds),
        first_frames=_array(call.conditions.first_frames),
        mask=_by_branch(call, prompt.mask, prompt.negative_mask),
        pooled=_by_branch(call, prompt.pooled, prompt.negative_pooled),
        embedded_guidance=None
        if embedded is None
        else jnp.asarray(embedded, jnp.float32),
        step_noise=None if steps is None else jnp.asarray(steps, jnp.float32),
        watcher=None if token is None else jnp.int32(token),
    )


def _array(value: Any) -> Array | None:
    return None if value is None else jnp.asarray(value)


def _program(
    call: _Call,
    model: Any,
    scheduler: Scheduler,
    switch: int | None,
    *,
    watched: bool,
    outlier_stats: bool,
    record_errors: bool,
) -> Program:
    """The static part of the program."""
    policy, execution, mesh, axes = call.policy, call.execution, call.mesh, NO_AXES
    if mesh is not None:
        mesh = meshes.automatic(mesh)
        axes = meshes.axes_of(
            mesh,
            guided=call.guided,
            batched=execution.batched_guidance,
            stacks=model.stack_names,
        )
    return Program(
        scheduler=scheduler,
        num_steps=call.num_steps,
        plan=policy.plan,
        update=policy.update,
        site=SiteOptions(
            routes=tuple(policy.routes) or (Route.BF16,),
            outlier_rule=policy.outlier_rule,
            outlier_stats=outlier_stats,
            errors=record_errors,
            kernels=execution.kernels,
            attention=execution.attention or ("plan" if policy.attention else "bf16"),
            arq_block=execution.arq_block,
            sparse=policy.sparse,
            axes=axes,
        ),
        layout=cache_layout(
            policy, model.stacks, delta_cache.checked_format(execution.cache_format)
        ),
        branches=call.branches,
        guided=call.guided,
        dtype=jnp.dtype(execution.dtype),
        watched=watched,
        switch=switch,
        extra_frames=call.sizes[1] - call.latent_shape[0],
        mesh=mesh,
    )


def _kind(name: str, value: Any, kind: type, otherwise: Any = None) -> Any:
    """`value`, made a `kind` where that is allowed."""
    if value is None:
        return kind() if otherwise is None else otherwise
    if not isinstance(value, kind):
        raise TypeError(
            f"sample: {name}: expected {kind.__name__}(...), found "
            f"{type(value).__name__}"
        )
    return value


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | list)


def _call(
    model: Any,
    prompt: Any,
    latent_shape: Any,
    num_steps: Any,
    guidance: Any,
    conditions: Any,
    policy: Any,
    execution: Any,
    noise: Any,
    mesh: Any,
) -> _Call:
    description = model.description
    if _is_array(prompt):
        prompt = Prompt(prompt)
    if _is_array(noise):
        noise = Noise(noise)
    if isinstance(guidance, int | float | jax.Array | np.number):
        guidance = Guidance(guidance)  # pyrefly: ignore[bad-argument-type]
    guidance = _kind("guidance", guidance, Guidance)
    scale = guidance.scale
    return _Call(
        description=description,
        prompt=_kind("prompt", prompt, Prompt),
        latent_shape=latent_shape,
        num_steps=num_steps,
        guidance=guidance,
        scale=description.defaults.guidance_scale if scale is None else scale,
        conditions=_kind("conditions", conditions, Conditions),
        policy=_kind("policy", policy, Policy, chain()),
        execution=_kind("execution", execution, Execution),
        noise=_kind("noise", noise, Noise),
        mesh=mesh,
    )


def _split(call: _Call, model: Any, scheduler: Scheduler) -> tuple[Any, Any, Any]:
    """Graph and parameters of one network or of both, and the step of the second."""
    low = call.conditions.low_noise
    if low is None:
        return *nnx.split(model), None
    switch = switch_step(scheduler, call.num_steps, low.boundary)
    return *split_pair(model, low.model), switch


def prepare(
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
    outlier_stats: bool = False,
    record_errors: bool = False,
    **unknown: Any,
) -> Prepared:
    """The arguments of `run_program`, checked; see `sample` for their meaning.

    For callers that compile ahead of time, `vmap` over inputs, embed the sampler in a
    larger program, or measure what a policy is fitted to.

    Args:
      model, scheduler, prompt, latent_shape, num_steps, guidance, conditions, policy,
        execution, seed, noise, mesh: see `sample`.
      on_step: see `sample`; it stays registered for as long as the process runs.
      outlier_stats: measure max|x| / mean|x| of every site.
      record_errors: measure the NVFP4 error of every site (calibration).

    Raises:
      TypeError: for an unknown option; names the one that was meant.
      ValueError: for inputs that do not fit; lists all of them.
    """
    if unknown:
        refuse(unknown)
    if num_steps is None:
        given = scheduler.given_steps
        default = model.description.defaults.num_steps
        num_steps = default if given is None else given
    call = _call(
        model,
        prompt,
        latent_shape,
        num_steps,
        guidance,
        conditions,
        policy,
        execution,
        noise,
        mesh,
    )
    problems = _problems(call, model, scheduler, seed, record_errors)
    if mesh is None and call.execution.kernels:
        problems += spread_problems(model, prompt, conditions, noise)
    if problems:
        raise ValueError("sample:\n  " + "\n  ".join(problems))
    graph, params, switch = _split(call, model, scheduler)
    progress = call.execution.progress
    token = None
    if on_step is not None or progress:
        token = watch.register(watch.Watcher(on_step, progress=progress))
    program = _program(
        call,
        model,
        scheduler,
        switch,
        watched=token is not None,
        outlier_stats=outlier_stats,
        record_errors=record_errors,
    )
    grid = block_grid(model, call.num_steps)
    inputs = _inputs(call, scheduler, seed, switch, grid, token)
    if program.mesh is not None:
        wrong = split_problems(params, program.site.axes)
        if wrong:
            raise ValueError("sample:\n  " + "\n  ".join(wrong))
        params, inputs = placed_for(program, params, inputs)
    return Prepared(program, graph, params, inputs)


__all__ = ["Prepared", "prepare"]
