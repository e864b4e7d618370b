"""`sample`: the public entry to the sampler; checks, then runs the compiled program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels.attention.api import Precision
from sixbit_jax.formats import StoredWeight
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.policies import BlockGrid, Policy, PolicyState, chain
from sixbit_jax.routes import Route
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.block_scan import CacheLayout
from sixbit_jax.sampling.guidance import dynamic_guidance_scale
from sixbit_jax.sampling.loop import Inputs, Program, run_program
from sixbit_jax.sampling.pair import LowNoise, ModelPair, split_pair, switch_step
from sixbit_jax.sampling.schedulers.base import Scheduler
from sixbit_jax.sampling.trace import SampleResult

run_jitted = partial(jax.jit, static_argnums=(0, 1))(run_program)
"""`run_program` compiled once per (program, model structure, shapes)."""


def block_grid(model, num_steps: int | None = None) -> BlockGrid:
    """What a policy decides over, for this model."""
    macs = np.asarray(model.site_macs())
    sites = tuple(model.sites)
    return BlockGrid(model.num_blocks, sites, macs, num_steps=num_steps)


def skippable_blocks(policy: Policy, num_blocks: int) -> tuple[int, ...]:
    """The blocks that get a slot in the delta cache under `policy`."""
    if isinstance(policy.skips, bool):
        return tuple(range(num_blocks)) if policy.skips else ()
    outside = [block for block in policy.skips if not 0 <= block < num_blocks]
    if outside:
        raise ValueError(f"policy skips blocks {outside}: expected 0..{num_blocks - 1}")
    return tuple(sorted(set(policy.skips)))


def cache_layout(
    policy: Policy, num_blocks: int, stored: delta_cache.Format
) -> CacheLayout:
    """Which blocks get a slot under `policy`, and which of them share one."""
    blocks = skippable_blocks(policy, num_blocks)
    group = num_blocks if policy.group is None else policy.group
    whole = len(blocks) in (0, num_blocks)
    # Groups that do not come out even, or only in part, have a slot per block.
    if num_blocks % group or not whole:
        group = 1
    return CacheLayout(num_blocks, blocks, stored, group)


def is_quantized(model) -> bool:
    """Whether the sites' weights are stored in a compressed format."""
    leaves = jax.tree.leaves(
        nnx.state(model.block_stack, nnx.Param),
        is_leaf=lambda leaf: isinstance(leaf, StoredWeight),
    )
    return any(isinstance(leaf, StoredWeight) for leaf in leaves)


def _policy_states(policy: Policy, grid: BlockGrid, branches: int) -> PolicyState:
    states = [policy.init(grid._replace(branch=i)) for i in range(branches)]
    return jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)]), *states)


def _check(
    model,
    text,
    negative,
    latent_shape,
    guided,
    num_steps,
    image,
    image_embeds,
    first_frames,
):
    config = model.config
    problems = []
    for name, embeds in (("text_embeds", text), ("negative_text_embeds", negative)):
        if embeds is None:
            continue
        if embeds.ndim != 3 or embeds.shape[-1] != config.text_embed_dim:
            problems.append(
                f"{name}: expected [batch, tokens, {config.text_embed_dim}], "
                f"found {tuple(embeds.shape)}"
            )
        elif embeds.shape != text.shape:
            problems.append(
                f"{name}: expected the shape of text_embeds {tuple(text.shape)}, "
                f"found {tuple(embeds.shape)}"
            )
    if negative is None and guided:
        problems.append(
            "negative_text_embeds: expected with a guidance_scale that is not 1, found "
            "none (guidance_scale=1.0 runs without)"
        )
    if num_steps < 1:
        problems.append(f"num_steps: expected at least 1, found {num_steps}")
    if len(latent_shape) != 4:
        problems.append(f"latent_shape: expected (F, C, H, W), found {latent_shape}")
    else:
        channels = latent_shape[1] + (0 if image is None else image.shape[2])
        if latent_shape[1] != config.out_channels or channels != config.in_channels:
            problems.append(
                f"channels: expected {config.out_channels} latent channels and "
                f"{config.in_channels} with image_latents, found {latent_shape[1]} "
                f"and {channels}"
            )
        problems += _image_problems(
            model, (text.shape[0], *latent_shape), image_embeds, first_frames
        )
    if problems:
        raise ValueError("sample:\n  " + "\n  ".join(problems))
    config.token_grid(latent_shape[0], *latent_shape[2:])


def _image_problems(model, shape, embeds, frames) -> list[str]:
    """What does not fit of the image of I2V models and the frames of TI2V models."""
    problems = []
    batch, num_frames, *rest = shape
    width = getattr(model.config, "image_dim", None)
    if width is None and embeds is not None:
        problems.append("image_embeds: expected none for this model, found some")
    elif width is not None and (
        embeds is None
        or embeds.ndim != 3
        or (embeds.shape[0], embeds.shape[2]) != (batch, width)
    ):
        found = "none" if embeds is None else tuple(embeds.shape)
        problems.append(f"image_embeds: expected [{batch}, I, {width}], found {found}")
    if frames is None:
        return problems
    if not getattr(model, "takes_clean_frames", False):
        problems.append("first_frames: expected none for this model, found some")
        return problems
    whole = model.config.patch_size[0]
    count = frames.shape[1] if frames.ndim == 5 else 0
    if (
        frames.shape != (batch, count, *rest)
        or not 0 < count < num_frames
        or count % whole
    ):
        problems.append(
            f"first_frames: expected {(batch, 'F', *rest)} with F a multiple of "
            f"{whole} below {num_frames}, found {tuple(frames.shape)}"
        )
    return problems


def prepare(
    model,
    scheduler: Scheduler,
    text_embeds: Float[Array, "batch T E"],
    *,
    latent_shape: tuple[int, int, int, int],
    negative_text_embeds: Float[Array, "batch T E"] | None = None,
    num_steps: int = 50,
    guidance_scale: float = 6.0,
    dynamic_guidance: bool = False,
    seed: int = 0,
    noise: Float[Array, "batch F C H W"] | None = None,
    policy: Policy | None = None,
    cache_format: str = "bf16",
    batched_guidance: bool = False,
    dtype: Any = jnp.bfloat16,
    image_latents: Float[Array, "batch F C2 H W"] | None = None,
    image_embeds: Float[Array, "batch I E2"] | None = None,
    first_frames: Float[Array, "batch F0 C H W"] | None = None,
    low_noise: LowNoise | None = None,
    ofs: float | None = None,
    outlier_stats: bool = False,
    record_errors: bool = False,
    attention: Precision | None = None,
    arq_block: int = 128,
    kernels: bool = True,
    progress: bool = False,
) -> tuple[Program, nnx.GraphDef, nnx.State | ModelPair, Inputs]:
    """The arguments of `run_program`, checked; see `sample` for their meaning.

    For callers that compile ahead of time, `vmap` over inputs, or embed the sampler
    in a larger program.
    """
    text = jnp.asarray(text_embeds)
    negative = (
        None if negative_text_embeds is None else jnp.asarray(negative_text_embeds)
    )
    scales = [guidance_scale, guidance_scale]
    if low_noise is not None and low_noise.guidance_scale is not None:
        scales[1] = low_noise.guidance_scale
    guided = scales != [1.0, 1.0]
    _check(
        model,
        text,
        negative,
        latent_shape,
        guided,
        num_steps,
        image_latents,
        image_embeds,
        first_frames,
    )
    stored = delta_cache.checked_format(cache_format)
    if attention not in (None, "bf16", "int8"):
        raise ValueError(
            f"attention: expected 'bf16', 'int8' or None, found {attention!r}"
        )
    policy = chain() if policy is None else policy
    low = sorted({Route(r).name for r in policy.routes} - {"BF16"})
    if (low or record_errors) and not is_quantized(model):
        raise ValueError(
            f"the policy uses the routes {', '.join(low) or 'of record_errors'}: "
            "expected stored weights (NVFP4: convert with --weights nvfp4, or "
            "sixbit_jax.quantize), found plain arrays"
        )
    branches = 2 if guided and not batched_guidance else 1
    key = jax.random.key(seed)
    if noise is None:
        noise_key, key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (text.shape[0], *latent_shape))
    if guided and negative is not None:
        text = jnp.concatenate([text, negative])
    scale = jnp.full((num_steps,), guidance_scale, jnp.float32)
    timesteps = scheduler.timesteps(num_steps)
    if dynamic_guidance:
        scale = dynamic_guidance_scale(guidance_scale, timesteps, num_steps)
    switch = None
    if low_noise is not None:
        switch = switch_step(scheduler, num_steps, low_noise.boundary)
        if scales[1] != scales[0]:
            scale = scale.at[switch:].set(scales[1])
    program = Program(
        scheduler=scheduler,
        num_steps=num_steps,
        plan=policy.plan,
        update=policy.update,
        site=SiteOptions(
            routes=tuple(policy.routes) or (Route.BF16,),
            outlier_rule=policy.outlier_rule,
            outlier_stats=outlier_stats,
            errors=record_errors,
            kernels=kernels,
            attention=attention or ("plan" if policy.attention else "bf16"),
            arq_block=arq_block,
        ),
        layout=cache_layout(policy, model.num_blocks, stored),
        branches=branches,
        guided=guided,
        dtype=jnp.dtype(dtype),
        progress=progress,
        switch=switch,
    )
    if low_noise is None:
        graph, params = nnx.split(model)
    else:
        graph, params = split_pair(model, low_noise.model)
    inputs = Inputs(
        text=text.reshape(branches, -1, *text.shape[1:]),
        noise=jnp.asarray(noise, jnp.float32),
        key=key,
        guidance_scale=scale,
        policy_state=_policy_states(policy, block_grid(model, num_steps), branches),
        image_latents=image_latents,
        ofs=None if ofs is None else jnp.float32(ofs),
        scheduler_state=scheduler.init(num_steps, noise.shape),
        # Flow matching may have timesteps between the integers.
        timesteps=jnp.asarray(
            timesteps, jnp.int32 if timesteps.dtype.kind == "i" else jnp.float32
        ),
        image_embeds=image_embeds,
        first_frames=first_frames,
    )
    return program, graph, params, inputs


def sample(model, scheduler: Scheduler, text_embeds, **options) -> SampleResult:
    """Denoises a batch of videos in one compiled program.

    A second call with other prompts, seeds, guidance scales, weights or policy numbers
    of the same structure does not compile again. All videos of the batch share one
    plan; with sequential guidance each guidance branch has its own.

    Args:
      model: a ported transformer, e.g. from `sixbit_jax.load`.
      scheduler: e.g. `CogVideoXDDIM`.
      text_embeds: prompt embeddings, [batch, T, E].
      latent_shape: (F, C, H, W) of one video's latents.
      negative_text_embeds: embeddings of the negative prompt, [batch, T, E]; needed
        unless guidance_scale is 1.
      num_steps: denoising steps.
      guidance_scale: classifier-free guidance; 1 runs one branch only.
      dynamic_guidance: diffusers' cosine schedule of the scale.
      seed: of the initial noise and of stochastic schedulers.
      noise: initial latents instead of seeded ones, [batch, F, C, H, W].
      policy: who decides routes and skips; None is full precision.
      cache_format: storage of the delta cache, "bf16", "int8", "nvfp4" or "float32".
      batched_guidance: both guidance branches in one forward with one shared plan.
      dtype: compute dtype of the network; latents stay float32.
      image_latents: extra input channels of I2V models, [batch, F, C2, H, W].
      image_embeds: image tokens that Wan2.1 I2V reads by cross-attention, in every
        guidance branch, [batch, I, E2].
      first_frames: clean latents of the first frames, [batch, F0, C, H, W], for
        Wan2.2 TI2V: their tokens are at timestep 0 in every step.
      low_noise: the second network of Wan2.2-A14B, its boundary and guidance scale;
        `model` is then the one for high noise.
      ofs: extra scalar of CogVideoX1.5 I2V.
      outlier_stats: measure max|x| / mean|x| of every site.
      record_errors: measure the NVFP4 error of every site (calibration).
      attention: "bf16", or "int8" for scores of quantized queries and keys, in all
        blocks; None: as the policy says (`int8_attention`), or "bf16".
      arq_block: channels that share a live scale on the routes ARQ4 and ARQ8.
      kernels: let the GPU kernels run where they can; False takes the plain
        definitions everywhere, which also run under `vmap`.
      progress: draw a progress bar from inside the program.

    Returns:
      `SampleResult(latents, trace)`.

    Raises:
      ValueError: for shapes, channels or options that do not fit; lists all of them.
    """
    program, graph, params, inputs = prepare(model, scheduler, text_embeds, **options)
    return run_jitted(program, graph, params, inputs)
