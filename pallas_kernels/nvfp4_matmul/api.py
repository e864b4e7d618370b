"""NVFP4 linear layer: both operands in NVFP4, exact products, fused epilogue."""

from __future__ import annotations

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from pallas_kernels.dispatch import (
    Implementation,
    dispatch,
    needs_block_scaled_mma,
    needs_gpu,
    needs_hopper,
)
from pallas_kernels.gemm.epilogue import EpilogueOperands, EpilogueOptions
from pallas_kernels.numerics.nvfp4 import BLOCK
from pallas_kernels.nvfp4_matmul import (
    mosaic_gpu,
    reference,
    scaled_matmul,
    triton,
    xla,
)


def nvfp4_matmul(
    x_codes: UInt8[Array, "*batch m half_k"],
    x_block_scales: Array,
    x_tensor_scale: Float[Array, "*batch"],
    w_codes: UInt8[Array, "n half_k"],
    w_block_scales: Array,
    w_tensor_scale: Float[Array, ""],
    *,
    out_dtype: jax.typing.DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
    **epilogue: Unpack[EpilogueOptions],
) -> Float[Array, "*batch m n"]:
    """Multiplies NVFP4 activations with NVFP4 weights and applies the layer's epilogue.

        y = sum_k (E2M1 * E4M3)_x (E2M1 * E4M3)_w * x_tensor_scale * w_tensor_scale

    Every product is exact; the sums and all that follows are float32, rounded once to
    `out_dtype`. The epilogue is that of `int8_matmul`.

    Args:
        x_codes: `[..., M, K/2]` uint8, any M, the even index in the low nibble.
        x_block_scales: `[..., M, K/16]` float8_e4m3fn.
        x_tensor_scale: `[...]` float32.
        w_codes: `[N, K/2]` uint8.
        w_block_scales: `[N, K/16]` float8_e4m3fn.
        w_tensor_scale: `[]` float32.
        out_dtype: bfloat16, float16 or float32.
        implementation: `"scaled_matmul"` (Blackwell; lowered and compiled, never run by
            us), `"triton"` (RTX 50 with jax-triton; likewise), `"mosaic_gpu"` (Hopper),
            `"xla"` (any GPU), `"reference"`, or `None` for the first that supports the
            device and the inputs.
        **epilogue: the attributes of `EpilogueOperands`: bias, GELU, gates of video and
            text rows, residual.

    Returns:
        `[..., M, N]` in `out_dtype`.

    Raises:
        ValueError: shapes that do not belong together.
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    *lead, m, half = x_codes.shape
    n = w_codes.shape[0]
    expected = {
        "x_block_scales": (*lead, m, 2 * half // BLOCK),
        "x_tensor_scale": tuple(lead),
        "w_codes": (n, half),
        "w_block_scales": (n, 2 * half // BLOCK),
        "w_tensor_scale": (),
    }
    found = {
        "x_block_scales": x_block_scales.shape,
        "x_tensor_scale": x_tensor_scale.shape,
        "w_codes": w_codes.shape,
        "w_block_scales": w_block_scales.shape,
        "w_tensor_scale": w_tensor_scale.shape,
    }
    if expected != found or (2 * half) % BLOCK:
        raise ValueError(
            f"nvfp4_matmul: x_codes {x_codes.shape} need K a multiple of {BLOCK} and "
            f"{expected}, found {found}"
        )
    operands = EpilogueOperands(**epilogue)
    operands.check("nvfp4_matmul", tuple(lead), m, n)
    arrays = (
        x_codes,
        x_block_scales,
        x_tensor_scale,
        w_codes,
        w_block_scales,
        w_tensor_scale,
        operands,
        out_dtype,
    )

    def run(module):
        return functools.partial(module.nvfp4_matmul, *arrays)

    return dispatch(
        "nvfp4_matmul",
        (
            Implementation("scaled_matmul", run(scaled_matmul), needs_block_scaled_mma),
            Implementation("triton", run(triton), triton.needs_triton_and_rtx_50),
            Implementation("mosaic_gpu", run(mosaic_gpu), needs_hopper),
            Implementation("xla", run(xla), needs_gpu),
            Implementation("reference", run(reference), definition=True),
        ),
        implementation,
    )
