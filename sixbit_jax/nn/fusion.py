"""What stands directly before and after the linears of a site.

Kernels fuse it: the front into the quantization pass (norm, modulation, GELU), the
gated residual into the GEMM's epilogue. The definitions here are plain JAX.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.nn.norms import layer_norm, per_row


@dataclass(frozen=True)
class Modulate:
    """Front: LayerNorm, then x (1 + scale) + shift with values per kind of row.

    Attributes:
      weight, bias: affine map of the norm, [D] or None.
      eps: the epsilon of the norm.
      shift, scale: those of video rows, [batch, D].
      text_shift, text_scale: those of the first `num_text` rows.
    """

    weight: Float[Array, "D"] | None
    bias: Float[Array, "D"] | None
    eps: float
    shift: Float[Array, "batch D"]
    scale: Float[Array, "batch D"]
    text_shift: Float[Array, "batch D"]
    text_scale: Float[Array, "batch D"]
    num_text: int

    def __call__(self, x: Float[Array, "batch tokens D"]) -> Array:
        """The site's activation, in the dtype of x."""
        rows = (self.num_text, x.shape[1])
        y = layer_norm(x, self.weight, self.bias, eps=self.eps)
        y = y * (1.0 + per_row(self.scale, self.text_scale, *rows))
        y = y + per_row(self.shift, self.text_shift, *rows)
        return y.astype(x.dtype)


@dataclass(frozen=True)
class Gelu:
    """Front: tanh-approximated GELU."""

    def __call__(self, x: Float[Array, "*batch D"]) -> Array:
        """The site's activation, in the dtype of x."""
        return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@dataclass(frozen=True)
class Identity:
    """Front of a site that reads its input as it is."""

    def __call__(self, x: Array) -> Array:
        """x."""
        return x


Front = Modulate | Gelu | Identity


@dataclass(frozen=True)
class GatedResidual:
    """Epilogue: residual + gate * y, with a gate per channel and kind of row.

    Attributes:
      residual: [batch, tokens, N].
      gate, text_gate: [batch, N].
      num_text: rows that use `text_gate`.
    """

    residual: Float[Array, "batch tokens N"]
    gate: Float[Array, "batch N"]
    text_gate: Float[Array, "batch N"]
    num_text: int

    def __call__(self, y: Float[Array, "batch tokens N"]) -> Array:
        """The new residual stream, in the dtype of the old."""
        gate = per_row(self.gate, self.text_gate, self.num_text, y.shape[1])
        sum_ = self.residual.astype(jnp.float32) + gate * y.astype(jnp.float32)
        return sum_.astype(self.residual.dtype)
