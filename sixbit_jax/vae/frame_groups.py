"""A chunk of frames as groups that are worked on one after the other.

The widest activations of a decoder are large: eight frames of 480x720 with 256 channels
are 1.4 GB in bfloat16, and a causal convolution stacks three frames in the channels.
What only one group needs (normalized frames, stacked frames) then exists once per group
and not once per chunk, and nothing is cut out of, or copied into, a whole chunk. The
numbers are the same.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sixbit_jax.vae.causal_conv import CausalConv3d, Stream, with_past

# Parts of a chunk in the order of time, each [batch, frames, H, W, C].
Groups = tuple[jax.Array, ...]
# (position of a group, its frames) -> the frames that a convolution takes.
Before = Callable[[int, jax.Array], jax.Array]


def split(x: Float[Array, "batch F H W C"], size: int) -> Groups:
    """Groups of `size` frames; the last may be shorter."""
    return tuple(x[:, i : i + size] for i in range(0, x.shape[1], size))


def split_all(groups: Iterable[Array], size: int) -> Groups:
    """Every group in groups of at most `size` frames."""
    return tuple(part for group in groups for part in split(group, size))


def joined(groups: Sequence[Array]) -> Float[Array, "batch F H W C"]:
    """The whole chunk."""
    return groups[0] if len(groups) == 1 else jnp.concatenate(groups, axis=1)


def starts(groups: Sequence[Array]) -> list[int]:
    """The first frame of every group, counted in the chunk."""
    found = [0]
    for group in groups:
        found.append(found[-1] + group.shape[1])
    return found[:-1]


def frames_per_group(stream: Stream, shape: Sequence[int], dtype: DTypeLike) -> int:
    """How many frames of [batch, F, H, W, C] a group may have: at least one.

    Three of them in the channels are at most `stream.group_bytes`.
    """
    batch, _, height, width, channels = shape
    size = 3 * batch * height * width * channels * jnp.dtype(dtype).itemsize
    return max(1, stream.group_bytes // size)


def convolve(
    layer: CausalConv3d,
    groups: Sequence[Array],
    stream: Stream,
    *,
    before: Before | None = None,
    residual: Sequence[Array] | None = None,
) -> Groups:
    """A causal convolution (of stride 1) of one chunk, group by group.

    Args:
      layer: the convolution.
      groups: of the chunk.
      stream: takes the frames before the chunk from here, and leaves its last ones.
      before: what a group goes through before it is convolved (a norm).
      residual: is added to the result.

    Returns:
      Groups of the same lengths.
    """
    past = stream.take()
    given, results = list(groups), []
    for i in range(len(given)):
        x = given[i] if before is None else before(i, given[i])
        frames, past = with_past(x, past, layer.kernel[0] - 1, layer.padding)
        y = layer.convolve(frames, stream)
        if residual is not None:
            y = residual[i] + y
        if i + 1 < len(given):
            # Else all groups may be prepared before the first is convolved.
            given[i + 1], y = jax.lax.optimization_barrier((given[i + 1], y))
        results.append(y)
    assert past is not None, "a chunk of at least one group"
    stream.keep(past)
    return tuple(results)
