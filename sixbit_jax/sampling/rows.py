"""One video of a batch at a time: its conditions, as a batch of one."""

from dataclasses import fields, replace

from sixbit_jax.sampling.options import Conditions

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


__all__ = ["conditions_of"]
