"""One video of a batch at a time: its inputs, as a batch of one."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sixbit_jax.sampling.options import Conditions

_BATCHED = ("image_latents", "image_embeds", "first_frames")


def conditions_of(conditions: Conditions, number: int) -> Conditions:
    """The conditions of one video.

    Args:
      conditions: the conditions of a batch; what every video shares stays as it is.
      number: the number of the video.

    Returns:
      The same with [1, ...] in the place of [batch, ...].
    """
    changed = {
        field.name: getattr(conditions, field.name)[number : number + 1]
        for field in fields(conditions)
        if field.name in _BATCHED and getattr(conditions, field.name) is not None
    }
    return replace(conditions, **changed)


def prompt_fields_of(given: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Masks and pooled embeddings of one prompt, as fields of `Prompt`.

    Args:
      given: arrays by field, a row per prompt; the negative prompt has one row.
      number: the number of the prompt.
    """
    return {
        name: value[:1] if name.startswith("negative") else value[number : number + 1]
        for name, value in given.items()
    }


__all__ = ["conditions_of", "prompt_fields_of"]
