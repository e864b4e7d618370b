"""INT8 linear layer: products, scales and everything that follows them, in one pass."""

from __future__ import annotations

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.gemm.epilogue import EpilogueOperands, EpilogueOptions
from pallas_kernels.int8_matmul import mosaic_gpu, reference, triton
from pallas_kernels.triton_backend.calls import needs_triton


def int8_matmul(
    x_values: Int8[Array, "*batch m k"],
    x_scales: Float[Array, "*batch m"],
    w_values: Int8[Array, "n k"],
    w_scales: Float[Array, " n"],
    *,
    out_dtype: jax.typing.DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
    **epilogue: Unpack[EpilogueOptions],
) -> Float[Array, "*batch m n"]:
    """Multiplies INT8 activations with INT8 weights and applies the layer's epilogue.

        y = (x_values w_values^T) * x_scales * w_scales + bias
        y = gelu_tanh(y)                      if activation
        y = residual + gate * y               if gate and residual

    The sums are exact int32; all that follows is float32, rounded once to `out_dtype`.

    Args:
        x_values: `[..., M, K]` int8, any M.
        x_scales: `[..., M]` float32, one per token. A NaN scale makes its row NaN.
        w_values: `[N, K]` int8.
        w_scales: `[N]` float32, one per output channel.
        out_dtype: bfloat16, float16 or float32.
        implementation: `"mosaic_gpu"` (Hopper), `"triton"` (any GPU since Ampere),
            `"reference"`, or `None` for the first that supports the device and the
            inputs.
        **epilogue: the attributes of `EpilogueOperands`: bias, GELU, gates of video and
            text rows, residual.

    Returns:
        `[..., M, N]` in `out_dtype`.

    Raises:
        ValueError: shapes that do not belong together.
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    *lead, m, k = x_values.shape
    n = w_values.shape[0]
    expected = {"x_scales": (*lead, m), "w_values": (n, k), "w_scales": (n,)}
    found = {
        "x_scales": x_scales.shape,
        "w_values": w_values.shape,
        "w_scales": w_scales.shape,
    }
    if expected != found:
        raise ValueError(
            f"int8_matmul: x_values {x_values.shape} needs {expected}, found {found}"
        )
    operands = EpilogueOperands(**epilogue)
    operands.check("int8_matmul", tuple(lead), m, n)
    arrays = (x_values, x_scales, w_values, w_scales, operands, out_dtype)
    return dispatch(
        "int8_matmul",
        (
            Implementation(
                "mosaic_gpu",
                functools.partial(mosaic_gpu.int8_matmul, *arrays),
                needs_hopper,
            ),
            Implementation(
                "triton", functools.partial(triton.int8_matmul, *arrays), needs_triton
            ),
            # A GPU runs this well: XLA's INT8 product with the epilogue fused.
            Implementation(
                "reference", functools.partial(reference.int8_matmul, *arrays)
            ),
        ),
        implementation,
    )
