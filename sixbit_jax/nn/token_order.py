"""Orders of video tokens in which a block of neighbours is compact in space and time.

The blocks of sparse attention are runs of tokens. Row by row, a run of 128 is a strip
that crosses a frame; along a space-filling curve it is a small box.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.nn.rope import RotaryTable
from sixbit_jax.sparsity import Order


def _bits(size: int) -> int:
    return max(size - 1, 1).bit_length()


def _interleaved(places: np.ndarray, bits: int) -> np.ndarray:
    """Bits of the coordinates in turn, the first coordinate's highest: [tokens]."""
    key = np.zeros(len(places), np.int64)
    for bit in reversed(range(bits)):
        for axis in range(places.shape[1]):
            key = key << 1 | places[:, axis] >> bit & 1
    return key


def _hilbert(places: np.ndarray, bits: int) -> np.ndarray:
    """Place along Hilbert's curve (J. Skilling, AIP Conf. Proc. 707, 381, 2004)."""
    x = places.T.copy()
    axes = len(x)
    for bit in reversed(range(1, bits)):
        low = (1 << bit) - 1
        for axis in range(axes):
            high = (x[axis] >> bit & 1).astype(bool)
            swap = np.where(high, 0, (x[0] ^ x[axis]) & low)
            x[0] = np.where(high, x[0] ^ low, x[0]) ^ swap
            x[axis] = x[axis] ^ swap
    for axis in range(1, axes):
        x[axis] ^= x[axis - 1]
    turned = np.zeros_like(x[0])
    for bit in reversed(range(1, bits)):
        turned = np.where(x[-1] >> bit & 1, turned ^ ((1 << bit) - 1), turned)
    return _interleaved((x ^ turned).T, bits)


def token_order(
    grid: tuple[int, int, int], order: Order
) -> Int[np.ndarray, "tokens"] | None:
    """Which token stands where.

    Args:
      grid: frames, rows and columns of tokens.
      order: "frames": as they come, frame after frame and row after row; "morton": by
        the interleaved bits of frame, row and column; "hilbert": along Hilbert's
        curve, whose neighbours are always neighbours in the video.

    Returns:
      For each place the number of the token, or None where all stay.

    Raises:
      ValueError: another order.
    """
    if order == "frames":
        return None
    keys = {"morton": _interleaved, "hilbert": _hilbert}
    if order not in keys:
        raise ValueError(
            f"token order: expected 'frames', 'morton' or 'hilbert', found {order!r}"
        )
    places = np.indices(grid).reshape(3, -1).T.astype(np.int64)
    return np.argsort(keys[order](places, _bits(max(grid))), kind="stable")


def reordered(
    x: Float[Array, "batch tokens D"],
    conditioning: Any,
    order: Int[np.ndarray, "video"],
) -> tuple[Float[Array, "batch tokens D"], Any]:
    """The residual stream and the rotary table with the video tokens in another order.

    Args:
      x: text, if there is any, before or after the video tokens.
      conditioning: of the network; `num_text` says how much text is before them.
      order: of the video tokens, see `token_order`.

    Raises:
      ValueError: first frames are given, whose tokens must stay the first.
    """
    if getattr(conditioning, "num_clean", 0):
        raise ValueError(
            "sparse attention: expected the order 'frames' with given first frames, "
            f"found another one and {conditioning.num_clean} of their tokens"
        )
    table, count = conditioning.rotary, len(order)
    if table is not None:
        parts = [np.concatenate([part[:count][order], part[count:]]) for part in table]
        conditioning = conditioning._replace(rotary=RotaryTable(*parts))
    return _moved(x, conditioning, order), conditioning


def restored(
    x: Float[Array, "batch tokens D"],
    conditioning: Any,
    order: Int[np.ndarray, "video"],
) -> Float[Array, "batch tokens D"]:
    """The residual stream of `reordered` as the tokens came."""
    return _moved(x, conditioning, np.argsort(order))


def _moved(x: Array, conditioning: Any, order: np.ndarray) -> Array:
    first, tokens = getattr(conditioning, "num_text", 0), np.arange(x.shape[1])
    tokens[first : first + len(order)] = first + order
    return jnp.take(x, tokens, axis=1, unique_indices=True, mode="clip")


__all__ = ["reordered", "restored", "token_order"]
