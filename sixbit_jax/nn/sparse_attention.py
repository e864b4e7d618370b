"""Attention that is dense or sparse as the plan says, block by block."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from pallas_kernels.attention import api, choose
from pallas_kernels.attention.api import Precision
from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.means import Centroids, centroids, quantized_centroids
from pallas_kernels.attention.quantize import QuantizedQKV
from pallas_kernels.attention.selection import BlockSelection
from pallas_kernels.norm_rope import Heads, norm_rope, norm_rope_qkv
from sixbit_jax.nn.attention import attention
from sixbit_jax.nn.varying import vary, varying_axes
from sixbit_jax.sparsity import SparseWay

type _Operands = QuantizedQKV | tuple[Array, Array, Array]


@dataclass(frozen=True)
class TokenLayout:
    """What stands where among the tokens of self-attention; static.

    Attributes:
      frame_tokens: tokens of one frame, which stand one after the other; 0: unknown.
      text: first text token and the token after the last; equal if there is no text.
    """

    frame_tokens: int = 0
    text: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Sparsity:
    """One block's decision.

    Attributes:
      way: static.
      sparse: whether blocks of keys are chosen; all of them otherwise.
      tau: of the threshold test; of "history", the exponent of two of the share of a
        block's weights in those before it, up to which the block is skipped from then
        on.
      history: the blocks that are skipped, one bit each; None: no way asks for it.
    """

    way: SparseWay
    sparse: Bool[Array, ""]
    tau: Float[Array, ""]
    history: UInt8[Array, "batch heads q_tiles bytes"] | None = None


def _operands(query: Heads, key: Heads, value: Array, precision, chosen) -> _Operands:
    if precision == "int8":
        return norm_rope_qkv(query, key, value, implementation=chosen)
    q, k = (
        part.x if part.untouched else norm_rope(part, implementation=chosen)
        for part in (query, key)
    )
    return q, k, value


def _dense(operands: _Operands, kernels: bool, key_lengths: Array | None) -> Array:
    if isinstance(operands, QuantizedQKV):
        chosen = None if kernels else "reference"
        return api.quantized_attention(
            operands, key_lengths=key_lengths, implementation=chosen
        )
    return attention(*operands, kernels=kernels, key_lengths=key_lengths)


def _means(operands: _Operands, grid: BlockGrid, chosen: str | None) -> Centroids:
    if isinstance(operands, QuantizedQKV):
        return quantized_centroids(operands, grid, implementation=chosen)
    return centroids(*operands, grid, implementation=chosen)


def _selection(
    operands: _Operands,
    grid: BlockGrid,
    sparsity: Sparsity,
    layout: TokenLayout,
    chosen: str | None,
) -> BlockSelection:
    way = sparsity.way
    if way.kind == "threshold":
        means = _means(operands, grid, chosen)
        return choose.by_threshold(
            means,
            grid,
            sparsity.tau,
            approximate=way.approximate,
            implementation=chosen,
        )
    if way.kind == "history":
        if sparsity.history is None:
            raise ValueError(
                "sparse attention, history: expected the state of earlier steps, found "
                "none"
            )
        means = _means(operands, grid, chosen) if way.approximate else None
        return choose.by_history(sparsity.history, grid, means, implementation=chosen)
    if not layout.frame_tokens:
        raise ValueError(
            f"sparse attention, {way.kind}: expected a network that says how many "
            "tokens a frame has, found none"
        )
    quantized = isinstance(operands, QuantizedQKV)
    batch, _, heads, _ = (operands.q_values if quantized else operands[0]).shape
    means = _means(operands, grid, chosen) if way.approximate else None
    mask = (
        partial(choose.radial, width=float(way.width))
        if way.kind == "radial"
        else partial(choose.window, frames=way.frames)
    )
    return mask(
        batch, heads, grid, tokens_per_frame=layout.frame_tokens, centroids=means
    )


def _sparse(
    operands: _Operands,
    sparsity: Sparsity,
    layout: TokenLayout,
    kernels: bool,
    key_lengths: Array | None,
) -> tuple[Array, Array, Array | None]:
    chosen = None if kernels else "reference"
    if isinstance(operands, QuantizedQKV):
        shape, value, precision = operands.q_values.shape, operands.v, "int8"
    else:
        shape, value, precision = operands[0].shape, operands[2], "bf16"
    grid = api.block_grid(
        shape, precision=precision, text=layout.text, dtype=value.dtype
    )
    grid = _resized(grid, sparsity.way)
    selection = _selection(operands, grid, sparsity, layout, chosen)
    rises = sparsity.way.kind == "history"
    options = {
        "selection": selection,
        "key_lengths": key_lengths,
        "rises": rises,
        "implementation": chosen,
    }
    if isinstance(operands, QuantizedQKV):
        found = api.quantized_attention(operands, **options)
    else:
        found = api.attention(*operands, **options)
    history = sparsity.history
    if rises and history is not None:
        found, added = found
        history = choose.after_step(history, added, grid, threshold=sparsity.tau)
    return found, selection.density(), history


def _resized(grid: BlockGrid, way: SparseWay) -> BlockGrid:
    """The grid with the blocks of the way, if it has some."""
    if way.blocks is None:
        return grid
    rows, keys = way.blocks
    return replace(grid, block_rows=rows, block_kv=keys)


def no_history(
    shape: tuple[int, int, int, int], way: SparseWay, dtype: Any
) -> UInt8[Array, "batch heads q_tiles bytes"] | None:
    """The state of "history" before the first step, None for other ways.

    Args:
      shape: of the queries.
      way: of choosing.
      dtype: of the values.

    Raises:
      ValueError: 16-bit and 8-bit scores have other blocks at this shape.
    """
    if way.kind != "history":
        return None
    grids = [
        _resized(api.block_grid(shape, precision=name, dtype=dtype), way)
        for name in ("bf16", "int8")
    ]
    if grids[0] != grids[1]:
        raise ValueError(
            "sparse attention, history: expected the same blocks with scores of 16 and "
            f"of 8 bits, found {grids[0]} and {grids[1]}"
        )
    return choose.no_skips(shape[0], shape[2], grids[0])


def attention_by_plan(
    query: Heads,
    key: Heads,
    value: Float[Array, "batch tokens heads head_dim"],
    sparsity: Sparsity,
    layout: TokenLayout,
    *,
    kernels: bool = False,
    precision: Precision | Bool[Array, ""] = "bf16",
    key_lengths: Int[Array, "batch"] | None = None,
) -> tuple[
    Float[Array, "batch tokens heads head_dim"],
    Float32[Array, ""],
    UInt8[Array, "batch heads q_tiles bytes"] | None,
]:
    """Self-attention to all keys, or to chosen blocks of them, by one conditional.

    Text queries attend to everything, and everything attends to blocks that hold text.
    No branch holds a loop, where the kernels run. Blocks of keys and tiles of queries
    are those of the kernel for this shape and precision, whatever runs.

    Args:
      query, key: the projections and what is to be done with them.
      value: as it is.
      sparsity: dense or sparse, and how blocks are chosen.
      layout: where text and frames are.
      kernels: see `nn.attention.attention`; without, the definition runs.
      precision: see `nn.attention.attention_of_heads`.
      key_lengths: see `nn.attention.attention`; padding must be inside the text.

    Returns:
      What attention gives, the share of the blocks of keys that was computed exactly
      (1 where it was dense), and the history for the next step.

    Raises:
      ValueError: a mask over frames of a network that has none.
    """
    chosen = None if kernels else "reference"
    axes = varying_axes(query.x, key.x, value, sparsity.sparse, sparsity.tau, precision)

    def prepared(precision: Precision) -> _Operands:
        return _operands(query, key, value, precision, chosen)

    def dense(operands: _Operands) -> tuple[Array, Array, Array | None]:
        out = _dense(operands, kernels, key_lengths)
        return vary((out, jnp.float32(1.0), sparsity.history), axes)

    def sparse(operands: _Operands) -> tuple[Array, Array, Array | None]:
        found = _sparse(operands, sparsity, layout, kernels, key_lengths)
        return vary(found, axes)

    if isinstance(precision, str):
        return jax.lax.cond(sparsity.sparse, sparse, dense, prepared(precision))
    branches = [
        lambda: dense(prepared("bf16")),
        lambda: dense(prepared("int8")),
        lambda: sparse(prepared("bf16")),
        lambda: sparse(prepared("int8")),
    ]
    index = 2 * sparsity.sparse.astype(jnp.int32) + precision.astype(jnp.int32)
    return jax.lax.switch(index, branches)


__all__ = ["Sparsity", "TokenLayout", "attention_by_plan", "no_history"]
