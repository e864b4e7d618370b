"""The arithmetic of each route: linears of one activation, from their stored weights.

NVFP4, INT8 and BF16 run as kernels on a GPU and hold no loops there, so that XLA
captures the branches of a site into a CUDA graph. INT4 and INT6 multiply on the INT8
kernel, exactly; what they and the ARQ routes do to the activation is plain JAX.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.int8_matmul.api import int8_matmul
from pallas_kernels.numerics import nvfp4
from pallas_kernels.nvfp4_matmul.api import nvfp4_matmul
from pallas_kernels.quantize_int8.api import quantize_int8
from pallas_kernels.quantize_nvfp4.api import quantize_nvfp4
from sixbit_jax.formats import NVFP4Array, StoredWeight, rotate
from sixbit_jax.nn.axes import NO_AXES, Axes
from sixbit_jax.nn.correction import corrected, has_correction
from sixbit_jax.nn.fusion import Front, GatedResidual, Gelu, Identity, Modulate
from sixbit_jax.nn.linear import Affine, matmul
from sixbit_jax.nn.token_levels import (
    block_scaled_product,
    channel_scales,
    token_levels,
)
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


def _epilogue(bias: Array | None, residual: GatedResidual | None, dtype) -> dict:
    """Bias and gated residual as the matmuls take them."""
    options = {"bias": bias, "out_dtype": dtype}
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


class StoredAffine(NamedTuple):
    """An `Affine` whose weight is stored in a compressed form."""

    weight: StoredWeight
    bias: Array | None


@dataclass(frozen=True)
class Work:
    """What every route computes: linears of one activation, with their surroundings.

    Attributes:
      affines: weights and biases of the linears that read the same activation.
      front: makes it from the site's input.
      residual: epilogue of the (single) linear.
      implementation: what the ops are asked for.
      arq_block: channels that share a live scale on ARQ4 and ARQ8.
      divided: the input is already divided by the weights' divisors.
      axes: over which the activation's rows are split.
    """

    affines: Sequence[Affine]
    front: Front
    residual: GatedResidual | None
    implementation: str | None
    arq_block: int = 128
    divided: bool = False
    axes: Axes = NO_AXES

    def undivided(self) -> list[StoredAffine]:
        """Biases, and stored weights without what they divide activations by."""
        return [StoredAffine(weight.undivided, bias) for weight, bias in self.stored()]

    def stored(self) -> list[StoredAffine]:
        """Stored weights and biases.

        Raises:
          TypeError: a weight is a plain array.
        """
        found: list[StoredAffine] = []
        for weight, bias in self.affines:
            if not isinstance(weight, StoredWeight):
                kind = type(weight).__name__
                if isinstance(weight, jax.Array):
                    kind = f"an array of shape {weight.shape}"
                raise TypeError(
                    "a route other than BF16 needs stored weights such as NVFP4, found "
                    f"{kind}"
                )
            found.append(StoredAffine(weight, bias))
        return found

    def bf16(self, x: Array) -> tuple[Array, ...]:
        """No quantization of the activation."""
        activation = self.front(x)
        outputs = []
        for weight, bias in self.affines:
            inputs = activation
            if isinstance(weight, StoredWeight):
                inputs = weight.prepare(activation)
                if x.dtype == jnp.bfloat16:
                    weight = weight.expand_bfloat16(implementation=self.implementation)
            y = matmul(inputs, weight, bias)
            outputs.append(y if self.residual is None else self.residual(y))
        return tuple(y.astype(x.dtype) for y in outputs)

    def int8(self, x: Array) -> tuple[Array, ...]:
        """Per-token INT8 activation, weight expanded to per-channel INT8."""
        values, scales, _ = quantize_int8(
            x,
            **_front_options(self.front, self.stored()[0].weight),
            implementation=self.implementation,
        )
        outputs = []
        for weight, bias in self.undivided():
            y = int8_matmul(
                values,
                scales,
                *weight.expand_int8(implementation=self.implementation),
                **_epilogue(bias, self.residual, x.dtype),
                implementation=self.implementation,
            )
            outputs.append(y)
        return tuple(outputs)

    def nvfp4(self, x: Array) -> tuple[Array, ...]:
        """Both sides NVFP4; the products are exact."""
        quantize = partial(
            quantize_nvfp4,
            x,
            **_front_options(self.front, self.stored()[0].weight),
            implementation=self.implementation,
        )
        codes, block_scales, tensor_scale, _ = quantize()
        if self.axes.rows:
            # What the first call made but the scale is unused, and not computed.
            tensor_scale = self.axes.largest(tensor_scale)
            codes, block_scales, _, _ = quantize(tensor_scale=tensor_scale)
        tensor_scale = jnp.broadcast_to(tensor_scale, codes.shape[:-2])
        outputs = []
        for weight, bias in self.undivided():
            if isinstance(weight, NVFP4Array):
                y = nvfp4_matmul(
                    codes,
                    block_scales,
                    tensor_scale,
                    *weight.arrays().values(),
                    **_epilogue(bias, self.residual, x.dtype),
                    implementation=self.implementation,
                )
            else:
                # Without the tensor scale the values are exact in bfloat16.
                one = jnp.ones_like(tensor_scale)
                values = nvfp4.dequantize(codes, block_scales, one, x.dtype)
                rows = tensor_scale[..., None]
                y = self.dense(values, rows, weight, bias, x.dtype)
            outputs.append(y)
        return tuple(outputs)

    def rotated(self, x: Array) -> Array:
        """The activation as the weights expect it, float32."""
        activation = self.front(x).astype(jnp.float32)
        return rotate(activation, self.stored()[0].weight.rotation)

    def uniform(self, x: Array, *, bits: int) -> tuple[Array, ...]:
        """Per-token uniform activation of few bits, weight expanded to INT8."""
        levels, scales = token_levels(self.rotated(x), bits)
        return tuple(
            int8_matmul(
                levels,
                scales,
                *weight.expand_int8(implementation=self.implementation),
                **_epilogue(bias, self.residual, x.dtype),
                implementation=self.implementation,
            )
            for weight, bias in self.undivided()
        )

    def channel_scales(self, rotated: Array, block: int = 1) -> Array:
        """ARQ's scales, of all tokens wherever they are."""
        return self.axes.largest_of_tokens(channel_scales(rotated, block))

    def arq(self, x: Array, *, bits: int) -> tuple[Array, ...]:
        """ARQ per block of channels: s of each block, then a grid per token.

        x~ = x H,  s_g = max |x~| over tokens and block g,  x^ = Q(x~ / s)
        y = sum_g s_g x^_g W_g^T  (DVD-Quant, arXiv 2505.18663)
        """
        rotated = self.rotated(x)
        scales = self.channel_scales(rotated, self.arq_block)
        spread = jnp.repeat(scales, self.arq_block, -1)[..., None, :]
        levels, rows = token_levels(rotated / spread, bits)
        outputs = []
        for weight, bias in self.undivided():
            values, channels = weight.expand_int8(implementation=self.implementation)
            y = block_scaled_product(levels, scales, values)
            outputs.append(self.finish(y * rows[..., None] * channels, bias, x.dtype))
        return tuple(outputs)

    def arq_channel(self, x: Array, *, bits: int) -> tuple[Array, ...]:
        """ARQ's definition, a scale per channel: y = Q(x~ / s) diag(s) W^T."""
        rotated = self.rotated(x)
        scales = self.channel_scales(rotated)[..., None, :]
        levels, rows = token_levels(rotated / scales, bits)
        return self.fake(levels * scales, rows, x.dtype)

    def arq_nvfp4(self, x: Array) -> tuple[Array, ...]:
        """A scale per channel in front of NVFP4 blocks."""
        rotated = self.rotated(x)
        scales = self.channel_scales(rotated)[..., None, :]
        spread = rotated / scales
        whole = self.axes.largest_of_tokens(nvfp4.tensor_scale_of(spread))
        values = nvfp4.fake_quantize(spread, whole) * scales
        return self.fake(values, jnp.ones(x.shape[:-1], jnp.float32), x.dtype)

    def fake(self, values: Array, rows: Array, dtype) -> tuple[Array, ...]:
        """Products of float32 values that no integer GEMM can run: definition only."""
        return tuple(
            self.dense(values, rows, weight, bias, dtype)
            for weight, bias in self.undivided()
        )

    def dense(
        self,
        values: Array,
        row_scales: Array,
        weight: StoredWeight,
        bias: Array | None,
        dtype,
    ) -> Array:
        """One linear of quantized values in a floating dtype.

        Args:
          values: [batch, tokens, K]; the weight is dequantized to their dtype.
          row_scales: float32, broadcastable to [batch, tokens].
          weight: of the linear; sums are float32.
          bias: of the linear.
          dtype: of the result.
        """
        if values.dtype == jnp.bfloat16:
            matrix = weight.expand_bfloat16(implementation=self.implementation)
        else:
            matrix = weight.dequantize(values.dtype)
        y = jnp.einsum(
            "...k,nk->...n", values, matrix, preferred_element_type=jnp.float32
        )
        return self.finish(y * row_scales[..., None], bias, dtype)

    def finish(self, y: Array, bias: Array | None, dtype) -> Array:
        """Bias and gated residual after float32 products."""
        y = y if bias is None else y + bias.astype(jnp.float32)
        y = y if self.residual is None else self.residual(y)
        return y.astype(dtype)

    def route(self, route: Route) -> Callable[[Array], tuple[Array, ...]]:
        """The function of x that takes this route."""
        if has_correction(self.affines):
            return partial(corrected, self, route=route)
        whole = route == Route.BF16 or self.divided
        if not whole and any(w.divisor is not None for w, _ in self.stored()):
            return partial(self.one_by_one, route=route)
        return {
            Route.NVFP4: self.nvfp4,
            Route.INT8: self.int8,
            Route.BF16: self.bf16,
            Route.INT4: partial(self.uniform, bits=4),
            Route.INT6: partial(self.uniform, bits=6),
            Route.ARQ4: partial(self.arq, bits=4),
            Route.ARQ8: partial(self.arq, bits=8),
            Route.ARQ4_CHANNEL: partial(self.arq_channel, bits=4),
            Route.ARQ8_CHANNEL: partial(self.arq_channel, bits=8),
            Route.ARQ_NVFP4: self.arq_nvfp4,
        }[route]

    def one_by_one(self, x: Array, *, route: Route) -> tuple[Array, ...]:
        """Linears whose weights ask for divided activations, each with its own."""
        activation = self.front(x)
        outputs: list[Array] = []
        for weight, bias in self.stored():
            divided = activation
            if weight.divisor is not None:
                divided = (activation.astype(jnp.float32) / weight.divisor).astype(
                    x.dtype
                )
            own = [Affine(weight, bias)]
            alone = replace(self, affines=own, front=Identity(), divided=True)
            outputs += alone.route(route)(divided)
        return tuple(outputs)
