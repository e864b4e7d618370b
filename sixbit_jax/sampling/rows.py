"""One video of a batch at a time: its prompt and conditions, as a batch of one."""

from collections.abc import Mapping
from dataclasses import fields, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.sampling.options import Conditions, Prompt

_BATCHED = ("image_latents", "image_embeds", "first_frames")


def conditions_of(conditions: Conditions, number: int) -> Conditions:
    """The conditions of one video.

    Args:
      conditions: of a batch; what every video shares stays as it is.
      number: of the video.

    Returns:
      The same with [1, ...] in the place of [batch, ...].
    """
    changed = {
        field.name: getattr(conditions, field.name)[number : number + 1]
        for field in fields(conditions)
        if field.name in _BATCHED and getattr(conditions, field.name) is not None
    }
    return replace(conditions, **changed)


def prompt_of(
    embeds: Float[Array | np.ndarray, "prompts T E"],
    negative: Float[Array | np.ndarray, "T E"] | None,
    number: int,
    *,
    rest: Mapping[str, Array | np.ndarray] | None = None,
    as_given: bool = False,
) -> Prompt:
    """The prompt of one video.

    Args:
      embeds: of all prompts.
      negative: of the one negative prompt; None without guidance.
      number: of the video.
      rest: other fields of `Prompt` by name: `mask` and `pooled` with a row for every
        prompt, `negative_mask` and `negative_pooled` with the negative prompt's alone.
      as_given: see `Prompt`.
    """
    rows = {
        name: jnp.asarray(value)[None]
        if name.startswith("negative_")
        else jnp.asarray(value)[number : number + 1]
        for name, value in (rest or {}).items()
        if negative is not None or not name.startswith("negative_")
    }
    other = None if negative is None else jnp.asarray(negative)[None]
    first = jnp.asarray(embeds[number])[None]
    return Prompt(first, other, as_given=as_given, **rows)


__all__ = ["conditions_of", "prompt_of"]
