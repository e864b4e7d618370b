"""The arithmetic of each route: linears of one activation, from their stored weights.

The functions hold no loops, so that XLA captures the branches of a site into a CUDA
graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.int8_matmul.api import int8_matmul
from pallas_kernels.numerics import nvfp4
from pallas_kernels.nvfp4_matmul.api import nvfp4_matmul
from pallas_kernels.quantize_int8.api import quantize_int8
from pallas_kernels.quantize_nvfp4.api import quantize_nvfp4
from sixbit_jax.formats import NVFP4Array, StoredWeight, rotate
from sixbit_jax.nn.fusion import Front, GatedResidual, Gelu, Modulate
from sixbit_jax.nn.linear import Linear, matmul
from sixbit_jax.routes import Route


def _front_options(front: Front, weight: StoredWeight) -> dict:
    """A front as the quantizing ops take it."""
    options: dict = {"rotation": weight.rotation}
    if isinstance(front, Modulate):
        options |= {
            "norm": "layer",
            "norm_weight": front.weight,
            "norm_bias": front.bias,
            "eps": front.eps,
            "shift": front.shift,
            "scale": front.scale,
            "text_shift": front.text_shift,
            "text_scale": front.text_scale,
            "text_rows": front.num_text,
        }
    elif isinstance(front, Gelu):
        options["activation"] = "gelu_tanh"
    return options


def _epilogue(linear: Linear, residual: GatedResidual | None, dtype) -> dict:
    """Bias and gated residual as the matmuls take them."""
    options = {"bias": linear.bias_array(), "out_dtype": dtype}
    if residual is not None:
        options |= {
            "residual": residual.residual,
            "gate": residual.gate,
        }
        if residual.num_text:
            options |= {
                "text_gate": residual.text_gate,
                "text_rows": residual.num_text,
            }
    return options


@dataclass(frozen=True)
class Work:
    """What every route computes: linears of one activation, with their surroundings."""

    linears: Sequence[Linear]
    front: Front
    residual: GatedResidual | None
    implementation: str | None

    def weights(self) -> list[StoredWeight]:
        """The stored weights.

        Raises:
          TypeError: one is a plain array.
        """
        weights: list[StoredWeight] = []
        for linear in self.linears:
            weight = linear.weight.get_value()
            if not isinstance(weight, StoredWeight):
                raise TypeError(
                    "a route other than BF16 needs stored weights such as NVFP4, found "
                    f"an array of shape {weight.shape}"
                )
            weights.append(weight)
        return weights

    def bf16(self, x: Array) -> tuple[Array, ...]:
        """No quantization of the activation."""
        activation = self.front(x)
        outputs = []
        for linear in self.linears:
            weight, inputs = linear.weight.get_value(), activation
            if isinstance(weight, StoredWeight):
                inputs = rotate(activation, weight.rotation)
                if x.dtype == jnp.bfloat16:
                    weight = weight.expand_bfloat16(implementation=self.implementation)
            y = matmul(inputs, weight, linear.bias_array())  # pyrefly: ignore
            outputs.append(y if self.residual is None else self.residual(y))
        return tuple(y.astype(x.dtype) for y in outputs)

    def int8(self, x: Array) -> tuple[Array, ...]:
        """Per-token INT8 activation, weight expanded to per-channel INT8."""
        values, scales, _ = quantize_int8(
            x,
            **_front_options(self.front, self.weights()[0]),
            implementation=self.implementation,
        )
        outputs = []
        for linear, weight in zip(self.linears, self.weights(), strict=True):
            y = int8_matmul(
                values,
                scales,
                *weight.expand_int8(implementation=self.implementation),
                **_epilogue(linear, self.residual, x.dtype),
                implementation=self.implementation,
            )
            outputs.append(y)
        return tuple(outputs)

    def nvfp4(self, x: Array) -> tuple[Array, ...]:
        """Both sides NVFP4; the products are exact (DESIGN section 5)."""
        codes, block_scales, tensor_scale, _ = quantize_nvfp4(
            x,
            **_front_options(self.front, self.weights()[0]),
            implementation=self.implementation,
        )
        tensor_scale = jnp.broadcast_to(tensor_scale, codes.shape[:-2])
        outputs = []
        for linear, weight in zip(self.linears, self.weights(), strict=True):
            if isinstance(weight, NVFP4Array):
                y = nvfp4_matmul(
                    codes,
                    block_scales,
                    tensor_scale,
                    *weight.arrays().values(),
                    **_epilogue(linear, self.residual, x.dtype),
                    implementation=self.implementation,
                )
            else:
                # Without the tensor scale the values are exact in bfloat16.
                one = jnp.ones_like(tensor_scale)
                values = nvfp4.dequantize(codes, block_scales, one, x.dtype)
                y = self.dense(values, tensor_scale[..., None], linear, weight)
            outputs.append(y)
        return tuple(outputs)

    def dense(
        self, values: Array, row_scales: Array, linear: Linear, weight: StoredWeight
    ) -> Array:
        """One linear of quantized values in a floating dtype: definition only.

        Args:
          values: [batch, tokens, K] in the dtype of the site's input.
          row_scales: float32, broadcastable to [batch, tokens].
          linear: for the bias.
          weight: dequantized to the dtype of the values; sums are float32.
        """
        matrix = weight.expand_bfloat16(implementation=self.implementation)
        if values.dtype != jnp.bfloat16:
            matrix = weight.dequantize(values.dtype)
        y = jnp.einsum(
            "...k,nk->...n", values, matrix, preferred_element_type=jnp.float32
        )
        return self.finish(y * row_scales[..., None], linear, values.dtype)

    def finish(self, y: Array, linear: Linear, dtype) -> Array:
        """Bias and gated residual after float32 products."""
        bias = linear.bias_array()
        y = y if bias is None else y + bias.astype(jnp.float32)
        y = y if self.residual is None else self.residual(y)
        return y.astype(dtype)

    def route(self, route: Route):
        """The function of x that takes this route."""
        return {Route.NVFP4: self.nvfp4, Route.INT8: self.int8, Route.BF16: self.bf16}[
            route
        ]
