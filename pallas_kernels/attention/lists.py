"""A block selection in the form that the kernel reads."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from pallas_kernels.attention.selection import BlockSelection

# Numbers that a copy to shared memory must be a multiple of: 32 bytes.
_MULTIPLE = 8
# The tensor cores multiply probabilities with so many values at least.
_LEAST_PROXIES = 64


class BlockLists(NamedTuple):
    """Operands of a kernel that attends to chosen blocks.

    Attributes:
        blocks: `[batch, heads, q_tiles, width]` int32: the numbers of the chosen
            blocks, ascending; in the last place how many there are.
        k_proxies: `[batch, proxies, heads, head_dim]`, one for each block of keys, then
            fillers; or None: skipped blocks are dropped.
        v_proxies: `[batch, proxies, heads, head_dim]`.
        proxy_bias: `[batch, heads, q_tiles, padded proxies]` float32, added to the
            exponents: log2 of the keys that a proxy stands for, minus infinity for
            blocks that are chosen and for fillers.
        proxy_scales: `[batch, heads, padded groups]` float32, of proxies in 8 bits: one
            for each group as large as a block of keys.
    """

    blocks: Int32[Array, "batch heads q_tiles width"]
    k_proxies: Float[Array, "batch proxies heads head_dim"] | None = None
    v_proxies: Float[Array, "batch proxies heads head_dim"] | None = None
    proxy_bias: Float32[Array, "batch heads q_tiles padded"] | None = None
    proxy_scales: Float32[Array, "batch heads groups"] | None = None

    @property
    def width(self) -> int:
        """Places of one list."""
        return self.blocks.shape[-1]

    def groups(self, block_kv: int) -> tuple[int, int]:
        """Groups of proxies as large as a block of keys, and proxies of a last one."""
        if self.proxy_bias is None:
            return 0, 0
        return divmod(self.proxy_bias.shape[-1], block_kv)

    def arrays(self) -> dict[str, jax.Array]:
        """Those that there are, by name."""
        return {
            name: array for name, array in self._asdict().items() if array is not None
        }


def _pad(x: jax.Array, axis: int, multiple: int, value: float = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value)


def block_lists(selection: BlockSelection, dtype, *, quantized: bool) -> BlockLists:
    """What the kernel reads.

    Args:
        selection: the chosen blocks.
        dtype: of the values, and of 16-bit keys.
        quantized: whether scores, those of proxies too, are of 8-bit operands.

    Returns:
        The lists.
    """
    grid = selection.grid
    made = selection.centroids
    if made is None:
        return BlockLists(selection.lists)
    bias = jnp.where(selection.chosen, -jnp.inf, jnp.log2(grid.lengths()))
    group = min(grid.block_kv, _LEAST_PROXIES)
    bias = _pad(bias.astype(jnp.float32), -1, group, -jnp.inf)
    values = _pad(made.values.astype(dtype), 1, group)
    if not quantized:
        keys = _pad(made.keys.astype(dtype), 1, group)
        return BlockLists(selection.lists, keys, values, bias)
    keys, scales = made.quantized_keys(grid.block_kv)
    scales = _pad(scales, -1, _MULTIPLE)
    return BlockLists(selection.lists, _pad(keys, 1, group), values, bias, scales)
