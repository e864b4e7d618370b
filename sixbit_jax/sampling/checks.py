"""Every input of a run held against what its network declares; all problems at once."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sixbit_jax.models.network import ConditionSpec, Description, PromptSpec
from sixbit_jax.policies import Policy
from sixbit_jax.routes import Route
from sixbit_jax.sampling.grid import is_quantized
from sixbit_jax.sampling.noise import seed_problem
from sixbit_jax.sampling.options import Conditions, Guidance, Noise, Prompt
from sixbit_jax.sampling.schedulers.base import Scheduler

LARGEST_VALUE = 1e6
"""Of embeddings, latents and noise: far beyond any of use, far below overflow."""
LARGEST_GUIDANCE = 1e3

Shape = tuple[int | None, ...]


def is_traced(value: Any) -> bool:
    """Whether a value is not known yet."""
    return isinstance(value, jax.core.Tracer)


def _shown(shape: Shape, names: tuple[str, ...]) -> str:
    sizes = (n if s is None else str(s) for s, n in zip(shape, names, strict=True))
    return "[" + ", ".join(sizes) + "]"


def array_problem(name: str, value: Any, shape: Shape, axes: str) -> str | None:
    """What is wrong with an array, or None.

    Args:
      name: the name of the input.
      value: the array, or None.
      shape: expected; None for an axis of any size.
      axes: names of the axes, separated by spaces.
    """
    wanted = _shown(shape, tuple(axes.split()))
    if value is None:
        return f"{name}: expected {wanted}, found none"
    found = tuple(np.shape(value))
    fits = len(found) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, found, strict=True)
    )
    if not fits:
        return f"{name}: expected {wanted}, found {found}"
    if 0 in found:
        return f"{name}: expected no empty axis, found {found}"
    return value_problem(name, value)


def value_problem(name: str, value: Any) -> str | None:
    """What is wrong with the numbers of an array, or None; traced ones pass."""
    if is_traced(value):
        return None
    array = jnp.asarray(value) if isinstance(value, jax.Array) else np.asarray(value)
    if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
        return f"{name}: expected real numbers, found {array.dtype}"
    largest = float(np.max(np.abs(np.asarray(array, np.float32))))
    if np.isfinite(largest) and largest <= LARGEST_VALUE:
        return None
    bound = f"finite values up to {LARGEST_VALUE:g}"
    return f"{name}: expected {bound}, found {largest:g}"


def number_problem(name: str, value: Any, largest: float) -> str | None:
    """What is wrong with a scalar, or None; traced ones pass."""
    if is_traced(value):
        return None if value.ndim == 0 else f"{name}: expected a number, found an array"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"{name}: expected a number, found {value!r}"
    if isinstance(value, bool) or not abs(number) <= largest:
        return f"{name}: expected a number within {largest:g}, found {value!r}"
    return None


def _text_problems(spec: PromptSpec, prompt: Prompt, name: str) -> Iterator[str | None]:
    """Problems of `embeds` or `negative_embeds`, with what belongs to them."""
    prefix = "negative_" if name == "negative_embeds" else ""
    embeds: Any = prompt.embeds if not prefix else prompt.negative_embeds
    mask = prompt.mask if not prefix else prompt.negative_mask
    pooled = prompt.pooled if not prefix else prompt.negative_pooled
    batch = np.shape(prompt.embeds)[0] if np.ndim(prompt.embeds) else None
    any_batch = None if not prefix else batch
    shape = (any_batch, None, spec.width)
    yield array_problem(f"prompt.{name}", embeds, shape, "batch tokens E")
    if np.ndim(embeds) != 3:
        return
    length = np.shape(embeds)[1]
    if spec.rule == "exact" and length != spec.length:
        yield f"prompt.{name}: expected {spec.length} tokens, found {length}"
    if spec.rule == "zeros" and length > spec.length and not prompt.as_given:
        yield f"prompt.{name}: expected at most {spec.length} tokens, found {length}"
    wanted = (batch, length)
    if spec.masked:
        yield array_problem(f"prompt.{prefix}mask", mask, wanted, "batch tokens")
    elif mask is not None:
        yield f"prompt.{prefix}mask: expected none for this network, found one"
    if spec.pooled_width is not None:
        wanted = (batch, spec.pooled_width)
        yield array_problem(f"prompt.{prefix}pooled", pooled, wanted, "batch P")
    elif pooled is not None:
        yield f"prompt.{prefix}pooled: expected none for this network, found one"


def prompt_problems(
    spec: PromptSpec, prompt: Prompt, *, guided: bool, scale: Any
) -> Iterator[str | None]:
    """Problems of the prompts."""
    yield from _text_problems(spec, prompt, "embeds")
    if prompt.negative_embeds is None:
        if guided:
            yield (
                f"prompt.negative_embeds: expected with a guidance scale of {scale}, "
                "found none (a scale of 1 runs without)"
            )
        return
    yield from _text_problems(spec, prompt, "negative_embeds")
    lengths = [np.shape(e)[1:2] for e in (prompt.embeds, prompt.negative_embeds)]
    if lengths[0] != lengths[1] and (spec.rule != "zeros" or prompt.as_given):
        yield (
            "prompt.negative_embeds: expected the shape of embeds "
            f"{tuple(np.shape(prompt.embeds))}, found "
            f"{tuple(np.shape(prompt.negative_embeds))}"
        )


def guidance_problems(
    spec: ConditionSpec, guidance: Guidance, scale: Any, second: Any
) -> Iterator[str | None]:
    """Problems of the guidance."""
    yield number_problem("guidance.scale", scale, LARGEST_GUIDANCE)
    if second is not None:
        name = "low_noise.guidance_scale"
        yield number_problem(name, second, LARGEST_GUIDANCE)
    if guidance.embedded is not None:
        if spec.embedded_guidance is None:
            yield "guidance.embedded: expected none for this network, found one"
        else:
            name = "guidance.embedded"
            yield number_problem(name, guidance.embedded, LARGEST_GUIDANCE)


def size_problems(description: Description, config: Any, shape: Any) -> Iterator[str]:
    """Problems of `latent_shape`."""
    whole = isinstance(shape, tuple | list) and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0
        for n in shape
    )
    if not whole or len(shape) != 4:
        yield f"latent_shape: expected (F, C, H, W), found {shape!r}"
        return
    channels = description.conditions.latent_channels
    if shape[1] != channels:
        yield f"latent_shape: expected {channels} channels, found {shape[1]}"
    frames = shape[0] + description.extra_frames(shape[0])
    try:
        config.token_grid(frames, *shape[2:])
    except ValueError as error:
        yield f"latent_shape: {error}"


def condition_problems(
    spec: ConditionSpec, given: Conditions, sizes: tuple[int, ...], asked_frames: int
) -> Iterator[str | None]:
    """Problems of what is given besides prompts.

    Args:
      spec: what the network takes.
      given: what it is given.
      sizes: [batch, F, C, H, W] of the latents as they are computed.
      asked_frames: F without the frames that are cut after sampling.
    """
    batch, frames, _, height, width = sizes
    extra = spec.image_latent_channels
    if extra:
        latents: Any = given.image_latents
        found = () if latents is None else np.shape(latents)
        count = asked_frames if found[1:2] == (asked_frames,) else frames
        wanted: Shape = (batch, count, extra, height, width)
        name = "image_latents"
        yield array_problem(name, given.image_latents, wanted, "batch F C2 H W")
    elif given.image_latents is not None:
        yield "image_latents: expected none for this network, found some"
    if spec.image_embeds_width is not None:
        wanted = (batch, spec.image_embeds_length, spec.image_embeds_width)
        yield array_problem("image_embeds", given.image_embeds, wanted, "batch I E2")
    elif given.image_embeds is not None:
        yield "image_embeds: expected none for this network, found some"
    if given.ofs is not None:
        if spec.ofs is None:
            yield "ofs: expected none for this network, found one"
        else:
            yield number_problem("ofs", given.ofs, LARGEST_VALUE)
    if spec.needs_first_frame:
        count, (batch, _, *rest) = spec.first_frames, sizes
        axes = "batch F0 C H W"
        wanted = (batch, count, *rest)
        yield array_problem("first_frames", given.first_frames, wanted, axes)
    elif given.first_frames is not None:
        yield _first_frames_problem(spec, given.first_frames, sizes)


def _first_frames_problem(
    spec: ConditionSpec, value: Any, sizes: tuple[int, ...]
) -> str | None:
    whole = spec.first_frames
    if not whole:
        return "first_frames: expected none for this network, found some"
    batch, frames, *rest = sizes
    found = tuple(np.shape(value))
    count = found[1] if len(found) == 5 else 0
    if found != (batch, count, *rest) or not 0 < count < frames or count % whole:
        sides = ", ".join(map(str, rest))
        return (
            f"first_frames: expected [{batch}, F, {sides}] with F a multiple of "
            f"{whole} below {frames}, found {found}"
        )
    return value_problem("first_frames", value)


def noise_problems(
    noise: Noise, sizes: tuple[int, ...], num_steps: Any, scheduler: Scheduler
) -> Iterator[str | None]:
    """Problems of given noise."""
    axes = "batch F C H W"
    if noise.initial is not None:
        yield array_problem("noise", noise.initial, sizes, axes)
    if noise.steps is None:
        return
    if not scheduler.stochastic:
        name = type(scheduler).__name__
        yield f"noise.steps: expected none with {name}, which adds none, found some"
    else:
        wanted = (num_steps, *sizes)
        yield array_problem("noise.steps", noise.steps, wanted, f"steps {axes}")


def schedule_problems(
    model: Any, description: Description, scheduler: Scheduler, num_steps: Any
) -> Iterator[str]:
    """Problems of the scheduler and the number of steps."""
    if scheduler.prediction_type != description.prediction:
        yield (
            f"scheduler: expected one for {description.prediction}, which "
            f"{type(model).__name__} predicts, found {type(scheduler).__name__} for "
            f"{scheduler.prediction_type}"
        )
    integer = isinstance(num_steps, int | np.integer)
    if isinstance(num_steps, bool) or not integer or num_steps < 1:
        yield f"num_steps: expected at least 1, found {num_steps!r}"
        return
    try:
        scheduler.timesteps(int(num_steps))
    except ValueError as error:
        yield str(error)


def pair_problems(model: Any, conditions: Conditions) -> Iterator[str]:
    """Problems of one network of a pair without the other."""
    if model.pair_boundary is not None and conditions.low_noise is None:
        yield (
            f"model: one network of a pair that changes at {model.pair_boundary}: "
            "expected the other one in conditions.low_noise (of `load_pair`), found "
            "none"
        )


def policy_problems(model: Any, policy: Policy, errors: bool) -> Iterator[str]:
    """Problems of the routes that the policy may take."""
    low = sorted({Route(r).name for r in policy.routes} - {"BF16"})
    if (low or errors) and not is_quantized(model):
        yield (
            f"the policy uses the routes {', '.join(low) or 'of record_errors'}: "
            "expected stored weights (NVFP4: convert with --weights nvfp4, or "
            "sixbit_jax.quantize), found plain arrays"
        )


def seed_problems(seed: Any) -> Iterator[str | None]:
    """Problems of the seed."""
    yield seed_problem(seed)


__all__ = [
    "condition_problems",
    "guidance_problems",
    "is_traced",
    "noise_problems",
    "pair_problems",
    "policy_problems",
    "prompt_problems",
    "schedule_problems",
    "seed_problems",
    "size_problems",
]
