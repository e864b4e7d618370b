"""INT8 linear layer: products, scales and everything that follows them, in one pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.gemm.epilogue import Activation, EpilogueOperands
from pallas_kernels.int8_matmul import mosaic_gpu, reference, triton
from pallas_kernels.triton_backend.calls import needs_triton


def int8_matmul(
    x_values: Int8[Array, "*batch m k"],
    x_scales: Float[Array, "*batch m"],
    w_values: Int8[Array, "n k"],
    w_scales: Float[Array, " n"],
    *,
    bias: Float[Array, " n"] | None = None,
    activation: Activation | None = None,
    residual: Float[Array, "*batch m n"] | None = None,
    gate: Float[Array, "*entries n"] | None = None,
    text_gate: Float[Array, "*entries n"] | None = None,
    text_rows: int = 0,
    out_dtype: jax.typing.DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
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
        bias: `[N]`.
        activation: `None` or `"gelu_tanh"`.
        residual: `[..., M, N]`, added last.
        gate: `[N]` or `[..., N]`, multiplies y per channel.
        text_gate: like `gate`, for the first `text_rows` rows of every batch entry.
        text_rows: static; needs `text_gate`.
        out_dtype: bfloat16, float16 or float32.
        implementation: `"mosaic_gpu"` (Hopper), `"triton"` (any GPU since Ampere),
            `"reference"`, or `None` for the first that supports the device and the
            inputs.

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
    operands = EpilogueOperands(
        bias=bias,
        activation=activation,
        residual=residual,
        gate=gate,
        text_gate=text_gate,
        text_rows=text_rows,
    )
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
