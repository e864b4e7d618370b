"""From the arguments of a linear layer to one call of the GEMM kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.gemm import mosaic_gpu, tiles
from pallas_kernels.gemm.config import Epilogue, operand_depth_multiple, padded
from pallas_kernels.gemm.epilogue import EpilogueOperands

_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)
_ROW_MULTIPLE = 8
_SCALES_MULTIPLE = 4
# Bytes of the shortest row that TMA stores swizzled.
_SMALLEST_SWIZZLE = 32


def refuse(
    shape: tuple[int, ...], dtype, n: int, operands: EpilogueOperands, out_dtype
) -> None:
    """Raises NotImplementedError with every reason the kernel cannot do this.

    Args:
        shape: the shape of x, `[..., M, K]`.
        dtype: the dtype of both operands.
        n: rows of w.
        operands: epilogue operands.
        out_dtype: the dtype of the result.
    """
    m, k = shape[-2:]
    reasons = []
    multiple = operand_depth_multiple(dtype)
    if k % multiple or k == 0:
        reasons.append(f"K must be a positive multiple of {multiple}, found {k}")
    columns = _SMALLEST_SWIZZLE // jnp.dtype(out_dtype).itemsize
    if n % columns or n == 0:
        reasons.append(f"N must be a positive multiple of {columns}, found {n}")
    if m == 0 or 0 in shape:
        reasons.append(f"empty batch or M: x has shape {shape}")
    if jnp.dtype(out_dtype) not in map(jnp.dtype, _FLOATS):
        reasons.append(f"out_dtype must be one of {_FLOATS}, found {out_dtype}")
    for name in ("bias", "gate", "text_gate", "residual"):
        value = getattr(operands, name)
        if value is not None and value.dtype not in map(jnp.dtype, _FLOATS):
            reasons.append(f"{name} must be floating point, found {value.dtype}")
    if reasons:
        raise NotImplementedError("mosaic_gpu GEMM: " + "; ".join(reasons))


def linear(
    x: jax.Array,
    w: jax.Array,
    *,
    row_scale: jax.Array | None,
    column_scale: jax.Array | None,
    scalar_scale: jax.Array | None,
    operands: EpilogueOperands,
    out_dtype,
    interpret: bool = False,
    tile: tiles.Tile | None = None,
) -> jax.Array:
    """x w^T with scales and epilogue, by the Mosaic GPU kernel.

    Args:
        x: `[..., M, K]`.
        w: `[N, K]`, the dtype of `x`.
        row_scale: `[..., M]` float32.
        column_scale: `[N]` float32.
        scalar_scale: `[]` float32.
        operands: epilogue operands, already checked.
        out_dtype: bfloat16, float16 or float32.
        interpret: run in the Pallas interpreter on the CPU.
        tile: overrides the table.

    Returns:
        `[..., M, N]`.

    Raises:
        NotImplementedError: the kernel does not do these dtypes or sizes.
    """
    refuse(x.shape, x.dtype, w.shape[0], operands, out_dtype)
    *lead, m, k = x.shape
    n = w.shape[0]
    batch = 1
    for size in lead:
        batch *= size
    gates = {"gate": operands.gate, "text_gate": operands.text_gate}
    per_entry = operands.text_rows > 0 or any(
        g is not None and g.ndim > 1 for g in gates.values()
    )
    if not per_entry:
        batch, m = 1, batch * m
    x = x.reshape(batch, m, k)
    residual = operands.residual
    if residual is not None:
        residual = residual.reshape(batch, m, n).astype(out_dtype)
    # The interpreter cannot alias buffers, which is how the kernel does any other M.
    rows = padded(m, _ROW_MULTIPLE) if interpret else m
    if rows != m:
        fill = ((0, 0), (0, rows - m), (0, 0))
        x = jnp.pad(x, fill)
        if residual is not None:
            residual = jnp.pad(residual, fill)
    if row_scale is not None:
        row_scale = row_scale.reshape(batch, m)
        # The scales are copied in bulk, in whole aligned units of 16 bytes.
        if short := padded(rows, _SCALES_MULTIPLE) - m:
            row_scale = jnp.pad(row_scale, ((0, 0), (0, short)))
        row_scale = row_scale.reshape(-1)
    epilogue = Epilogue(
        row_scale=row_scale is not None,
        column_scale=column_scale is not None,
        scalar_scale=scalar_scale is not None,
        bias=operands.bias is not None,
        activation=operands.activation,
        residual=residual is not None,
        gate=operands.gate is not None,
        text_rows=operands.text_rows,
    )
    if tile is None:
        tile = tiles.choose(x.dtype, n, epilogue)
    out_bytes = jnp.dtype(out_dtype).itemsize
    out = mosaic_gpu.matmul(
        x,
        w,
        tile=tile.fitted(epilogue, n, x.dtype.itemsize, out_bytes),
        epilogue=epilogue,
        row_scale=row_scale,
        column_scale=column_scale,
        scalar_scale=None if scalar_scale is None else scalar_scale.reshape(1),
        bias=operands.bias,
        residual=residual,
        gate=_entries(operands.gate, batch, n),
        text_gate=_entries(operands.text_gate, batch, n),
        out_dtype=out_dtype,
        multiprocessors=2 if interpret else dispatch.multiprocessors(),
        interpret=interpret,
    )
    return out[:, :m].reshape(*lead, -1, n)


def _entries(gate: jax.Array | None, batch: int, n: int) -> jax.Array | None:
    """A gate as `[batch, n]`, or `[1, n]` where all entries share it."""
    if gate is None:
        return None
    return gate.reshape(1, n) if gate.ndim == 1 else gate.reshape(batch, n)
