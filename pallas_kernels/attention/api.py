"""Attention over video and text tokens, by the fastest way the device supports."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention import (
    cudnn,
    mosaic_gpu,
    reference,
    sparse_reference,
    triton,
)
from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.quantize import QuantizedQKV
from pallas_kernels.attention.selection import BlockSelection
from pallas_kernels.attention.tiles import choose_tile
from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.triton_backend.calls import needs_triton
from pallas_kernels.triton_backend.devices import DeviceClass, device_class

Precision = Literal["bf16", "int8"]
# An array; with `rises` a pair of arrays. The caller knows which.
type Output = Any
_KERNELS: tuple[tuple[str, Any, Callable[[], None]], ...] = (
    ("mosaic_gpu", mosaic_gpu, needs_hopper),
    ("triton", triton, needs_triton),
)


def attention(
    q: Float[Array, "batch q_tokens heads head_dim"],
    k: Float[Array, "batch kv_tokens heads head_dim"],
    v: Float[Array, "batch kv_tokens heads head_dim"],
    *,
    precision: Precision = "bf16",
    scale: float | None = None,
    selection: BlockSelection | None = None,
    key_lengths: Array | None = None,
    rises: bool = False,
    implementation: str | None = None,
) -> Output:
    """Softmax attention, of all keys or of chosen blocks of them.

        out = softmax(q k^T * scale) v, per batch entry and head

    Args:
        q: `[batch, q_tokens, heads, head_dim]`, any number of tokens.
        k: `[batch, kv_tokens, heads, head_dim]`, after rotary embedding like q.
        v: `[batch, kv_tokens, heads, head_dim]`.
        precision: `"bf16"` multiplies in the dtype of the inputs. `"int8"` quantizes q
            and k (see `quantize_qkv`) and multiplies probabilities with v in 16 bits.
        scale: factor of the scores; `None` is head_dim ** -0.5.
        selection: blocks of keys of each tile of queries, made for the `block_grid` of
            these operands (see `choose`); `None` is all keys.
        key_lengths: `[batch]` integers, at least 1: of each batch entry, the first so
            many keys count and the rest, padding, is invisible; `None` is all. With a
            selection, padding must be inside the text of its grid, whose blocks no tile
            skips.
        rises: whether to say how much each block adds, for `choose.after_step`; with a
            selection, without `key_lengths`.
        implementation: `"mosaic_gpu"` (Hopper), `"triton"` (any GPU since Ampere, all
            keys only), `"cudnn"` (all keys only; of `"int8"`, it multiplies what was
            quantized in 16 bits), `"reference"`, or `None` for the first that supports
            the device and the inputs.

    Returns:
        `[batch, q_tokens, heads, head_dim]` in the dtype of q; with `rises` also
        `[batch, heads, q_tiles, kv_blocks]`, see `sparse_reference.block_rises`.

    Raises:
        ValueError: shapes that do not belong together, another precision, a selection
            of other operands, or key lengths with a selection without text at the end.
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    if precision not in ("bf16", "int8"):
        raise ValueError(
            f"attention: precision must be 'bf16' or 'int8', found {precision!r}"
        )
    if q.ndim != 4 or k.shape != (q.shape[0], k.shape[1], *q.shape[2:]):
        raise ValueError(
            f"attention: q {q.shape} must be [batch, q_tokens, heads, head_dim] and k "
            f"{k.shape} agree with it in all but the number of tokens"
        )
    if v.shape != k.shape:
        raise ValueError(f"attention: k {k.shape} and v {v.shape} must have one shape")
    _check_selection(selection, q.shape, k.shape)
    _check_lengths(key_lengths, selection, k.shape)
    _check_rises(rises, selection, key_lengths)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arrays = (q, k, v)
    options = {"scale": scale, "precision": precision, "key_lengths": key_lengths}
    candidates = [
        Implementation(
            name,
            functools.partial(
                module.attention,
                *arrays,
                selection=selection,
                **options,
                **_asked(rises),
            ),
            needs,
        )
        for name, module, needs in _kernels(rises)
    ]
    if selection is None:
        definition = functools.partial(reference.attention, *arrays, **options)
    else:
        definition = functools.partial(
            sparse_reference.attention, *arrays, selection, **options, **_asked(rises)
        )
    if selection is None:
        library = Implementation(
            "cudnn",
            functools.partial(cudnn.attention, *arrays, **options),
            cudnn.needs_cudnn_gpu,
        )
        place = _place_of_library(q.shape[-1], quantized=precision == "int8")
        candidates.insert(place, library)
    candidates.append(Implementation("reference", definition, definition=True))
    return dispatch("attention", candidates, implementation)


def _place_of_library(head_dim: int, *, quantized: bool) -> int:
    """Where cuDNN stands among the kernels of all keys: before Triton's, or behind.

    Head dimensions below 128 have half the products per exponential, and cuDNN overlaps
    the two: on an H200 it takes 9.2 ms at 48 heads of 64 where our Triton kernel takes
    13.2, and 12.7 with INT8 scores. At 128 they take the same, INT8 scores less. Where
    INT8 products have a greater advantage than on Hopper nobody has timed them.
    """
    slower = head_dim < 128 and (not quantized or device_class() is DeviceClass.HOPPER)
    return 1 if slower else len(_KERNELS)


def _asked(rises: bool) -> dict[str, bool]:
    return {"rises": True} if rises else {}


def _kernels(rises: bool) -> tuple:
    """Those that can say how much each block adds, where that is asked."""
    return _KERNELS[:1] if rises else _KERNELS


def _check_rises(
    rises: bool, selection: BlockSelection | None, key_lengths: Array | None
) -> None:
    """Raises ValueError where what blocks add cannot be told."""
    if rises and (selection is None or key_lengths is not None):
        found = "no selection" if selection is None else "key lengths"
        raise ValueError(
            "attention: expected a selection and no key_lengths with rises, found "
            f"{found}"
        )


def _check_selection(
    selection: BlockSelection | None, q_shape: tuple, k_shape: tuple
) -> None:
    """Raises ValueError for a selection of other operands."""
    if selection is None:
        return
    grid = selection.grid
    expected = (q_shape[0], q_shape[2], q_shape[1], k_shape[1])
    found = (*selection.counts.shape[:2], grid.q_tokens, grid.kv_tokens)
    if expected != found:
        raise ValueError(
            f"attention: expected a selection of (batch, heads, q_tokens, kv_tokens) "
            f"{expected}, found {found}"
        )


def _check_lengths(
    key_lengths: Array | None,
    selection: BlockSelection | None,
    k_shape: tuple[int, ...],
) -> None:
    """Raises ValueError for lengths of other operands."""
    if key_lengths is None:
        return
    if key_lengths.shape != (k_shape[0],) or not jnp.issubdtype(
        key_lengths.dtype, jnp.integer
    ):
        raise ValueError(
            f"attention: expected key_lengths as integers [{k_shape[0]}], found "
            f"{key_lengths.dtype} {key_lengths.shape}"
        )
    if selection is None:
        return
    start, stop = selection.grid.text
    if start == stop or stop != k_shape[1]:
        raise ValueError(
            "attention: expected a selection whose grid has text to the last of "
            f"{k_shape[1]} keys with key_lengths, found {selection.grid.text}"
        )


def block_grid(
    q_shape: tuple[int, ...],
    *,
    precision: Precision = "bf16",
    kv_tokens: int | None = None,
    text: tuple[int, int] = (0, 0),
    dtype=jnp.bfloat16,
) -> BlockGrid:
    """The tiles and blocks that a selection must choose from.

    Args:
        q_shape: `[batch, q_tokens, heads, head_dim]`.
        precision: of the attention.
        kv_tokens: `None` is as many as queries.
        text: first text token and the token after the last, in joint attention.
        dtype: of the values.

    Returns:
        The grid of the kernel's tile for this shape.
    """
    tile = choose_tile(q_shape, quantized=precision == "int8", dtype=dtype)
    return BlockGrid(
        q_tokens=q_shape[1],
        kv_tokens=q_shape[1] if kv_tokens is None else kv_tokens,
        block_rows=tile.block_rows,
        block_kv=tile.block_kv,
        text=text,
    )


def quantized_attention(
    operands: QuantizedQKV,
    *,
    selection: BlockSelection | None = None,
    key_lengths: Array | None = None,
    rises: bool = False,
    implementation: str | None = None,
) -> Output:
    """`attention` with `precision="int8"`, of operands that are quantized already.

    Args:
        operands: from `quantize_qkv` or `norm_rope_qkv`.
        selection: as in `attention`, its centroids from `quantized_centroids`.
        key_lengths, rises: as in `attention`.
        implementation: as in `attention`.

    Returns:
        `[batch, q_tokens, heads, head_dim]` in the dtype of v; with `rises` as in
        `attention`.

    Raises:
        ValueError: a selection or key lengths of other operands.
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    _check_selection(selection, operands.q_values.shape, operands.v.shape)
    _check_lengths(key_lengths, selection, operands.v.shape)
    _check_rises(rises, selection, key_lengths)
    options = {"key_lengths": key_lengths}
    if selection is None:
        definition = functools.partial(
            reference.quantized_attention, operands, **options
        )
    else:
        definition = functools.partial(
            sparse_reference.quantized_attention,
            operands,
            selection,
            **options,
            **_asked(rises),
        )
    candidates = [
        Implementation(
            name,
            functools.partial(
                module.quantized_attention,
                operands,
                selection=selection,
                **options,
                **_asked(rises),
            ),
            needs,
        )
        for name, module, needs in _kernels(rises)
    ]
    if selection is None:
        # The scores of the quantized operands, in 16 bits.
        library = Implementation(
            "cudnn",
            functools.partial(cudnn.quantized_attention, operands, **options),
            cudnn.needs_cudnn_gpu,
        )
        place = _place_of_library(operands.q_values.shape[-1], quantized=True)
        candidates.insert(place, library)
    candidates.append(Implementation("reference", definition, definition=True))
    return dispatch("quantized_attention", candidates, implementation)
