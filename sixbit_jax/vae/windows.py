"""Overlapping windows of frames, coded one by one and blended (HunyuanVideo).

diffusers' rule: a window is `size` frames and the one before them; the first result
frame of every window but the first is dropped, the next ones are faded in over the
last ones of the window before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array, Float

from sixbit_jax.vae.tiling import blend


@dataclass(frozen=True)
class Windows:
    """Sizes in frames of the video, multiples of the temporal ratio.

    Attributes:
      size: frames of a window; shorter videos are coded whole.
      stride: from one window to the next; the rest overlaps.
      ratio: frames per latent frame.
    """

    size: int = 16
    stride: int = 12
    ratio: int = 4


@partial(jax.jit, static_argnames=("overlap", "stride"))
def _join(
    tail: Array | None, y: Array, *, overlap: int, stride: int
) -> tuple[Array, Array]:
    """The frames of a window to hand out, and those that the next one fades over."""
    if tail is not None:
        y = blend(tail, y[:, 1:], overlap, axis=1)
    keep = stride + (tail is None)
    return y[:, :keep], y[:, max(y.shape[1] - overlap, 0) :]


def window_stream(
    step: Callable[[Array], Array],
    x: Float[Array, "batch F C H W"],
    windows: Windows,
    *,
    decode: bool,
) -> Iterator[Array]:
    """Codes a video window by window.

    Args:
      step: codes one window.
      x: the whole input: latents if `decode`, else frames.
      windows: sizes.
      decode: whether x is latents.

    Yields:
      The next frames of the result.
    """
    latent = Windows(windows.size // windows.ratio, windows.stride // windows.ratio)
    source, target = (latent, windows) if decode else (windows, latent)
    if x.shape[1] <= source.size:
        yield step(x)
        return
    overlap = target.size - target.stride
    tail: Array | None = None
    for start in range(0, x.shape[1], source.stride):
        y = step(x[:, start : start + source.size + 1])
        frames, tail = _join(tail, y, overlap=overlap, stride=target.stride)
        if frames.shape[1]:
            yield frames
