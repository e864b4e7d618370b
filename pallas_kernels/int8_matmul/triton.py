"""`int8_matmul` on the INT8 tensor cores of any NVIDIA GPU since Ampere, by Triton."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.triton_backend import calls
from pallas_kernels.triton_backend.calls import Launch
from pallas_kernels.triton_backend.devices import DeviceClass, device_class

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


class Tile(NamedTuple):
    """Rows, columns and depth of a program's tile, and how it is launched.

    `group` tiles of rows run together, so that they share columns in the L2 cache.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8

    @property
    def shared_bytes(self) -> int:
        """Shared memory of the pipelined operands."""
        return self.stages * self.depth * (self.rows + self.columns)


# Hopper: timed at the shapes of CogVideoX-5b, 845 to 1142 TOPS on an H200, but not yet
# against the candidates of `python -m benchmarks.kernels.triton_kernels --only
# tune-gemm`. The others have not been timed: what fits their shared memory and
# registers.
TILES = {
    DeviceClass.AMPERE: Tile(128, 128, 128, 8, 3),
    DeviceClass.SMALL: Tile(128, 128, 64, 8, 3),
    DeviceClass.HOPPER: Tile(128, 256, 128, 8, 3),
    DeviceClass.BLACKWELL: Tile(128, 256, 128, 8, 3),
}


def int8_matmul(
    x_values: jax.Array,
    x_scales: jax.Array,
    w_values: jax.Array,
    w_scales: jax.Array,
    operands: EpilogueOperands,
    out_dtype,
    *,
    tile: Tile | None = None,
) -> jax.Array:
    """The product and its epilogue in one kernel.

    Raises:
        NotImplementedError: operands that are not int8, another output dtype, or K not
            a multiple of 16, which the copies need.
    """
    *lead, m, k = x_values.shape
    n = w_values.shape[0]
    if x_values.dtype != jnp.int8 or w_values.dtype != jnp.int8:
        raise NotImplementedError(
            f"int8_matmul needs int8 operands, found {x_values.dtype} and "
            f"{w_values.dtype}"
        )
    if out_dtype not in _DTYPES or k % 16 or not x_values.size:
        raise NotImplementedError(
            f"the Triton kernel of int8_matmul needs rows, K a multiple of 16 and an "
            f"output in bfloat16, float16 or float32, found {x_values.shape} to "
            f"{jnp.dtype(out_dtype)}"
        )
    tile = tile or TILES[device_class()]
    rows = math.prod(lead) * m
    x_scales = x_scales.astype(jnp.float32).reshape(rows)
    w_scales = w_scales.astype(jnp.float32)

    def given(array: jax.Array | None) -> jax.Array:
        # A kernel has a place for every operand; those that are missing are not read.
        return w_scales if array is None else array

    def stride(gate: jax.Array | None) -> int:
        shared = gate is None or gate.ndim == 1 or math.prod(lead) == 1
        return 0 if shared else n

    [out] = calls.call(
        "int8_matmul:int8_matmul",
        (
            x_values.reshape(rows, k),
            x_scales,
            w_values,
            w_scales,
            given(operands.bias),
            given(operands.residual),
            given(operands.gate),
            given(operands.text_gate),
        ),
        [jax.ShapeDtypeStruct((rows, n), out_dtype)],
        grid=(-(-rows // tile.rows) * -(-n // tile.columns),),
        launch=Launch(tile.warps, tile.stages),
        fused_multiply_add=True,
        M=rows,
        N=n,
        K=k,
        ROWS_PER_ENTRY=m,
        TEXT_ROWS=operands.text_rows,
        HAS_BIAS=operands.bias is not None,
        GELU=operands.activation is not None,
        HAS_RESIDUAL=operands.residual is not None,
        HAS_GATE=operands.gate is not None,
        GATE_STRIDE=stride(operands.gate),
        TEXT_GATE_STRIDE=stride(operands.text_gate),
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        BLOCK_K=tile.depth,
        GROUP_M=tile.group,
        PARTS=2 if tile.columns >= 128 else 1,
    )
    return out.reshape(*lead, m, n)
