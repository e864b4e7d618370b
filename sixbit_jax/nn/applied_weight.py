"""Weights for tuning and observing, in the place of a linear's matrix."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.formats.applied import AppliedWeight, dense, low_rank_update
from sixbit_jax.nn.fake_quantize import fake_quantize_tokens


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weight", "down", "up", "factors", "activation_levels"),
    meta_fields=("text_rows",),
)
@dataclasses.dataclass(frozen=True, eq=False)
class CorrectedWeight(AppliedWeight):
    """A weight with a low-rank correction beside it, weighted per frame.

    y = x_q W^T + M (x_q A^T) B^T, x_q the fake-quantized activation. With rank one this
    is Q-VDiT's Token-aware Quantization Estimator (arXiv 2505.22167), where M has one
    factor for each frame of tokens.

    Attributes:
      weight: an array or anything with `dequantize(dtype)`, `[..., N, K]`.
      down: A, [..., r, K].
      up: B, [..., N, r].
      factors: M, [..., G]: of the text rows (where there are any), then of each frame;
        G = 1 is one factor for all rows; None is 1.
      activation_levels: [...] float, highest code of the activation's quantization,
        2^bits - 1; None leaves the activation as it is.
      text_rows: rows before the first frame.
    """

    weight: Any
    down: Array
    up: Array
    factors: Array | None = None
    activation_levels: Array | None = None
    text_rows: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return tuple(self.weight.shape)

    def dequantize(self, dtype: Any = jnp.float32) -> Array:
        """The matrix without its correction."""
        return dense(self.weight, dtype)

    def correction(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """M (x A^T) B^T in float32; x is already quantized."""
        return low_rank_update(
            x, self.down, self.up, self.factors, text_rows=self.text_rows
        )

    def apply(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """The corrected product."""
        if self.activation_levels is not None:
            x = fake_quantize_tokens(x, self.activation_levels)
        y = jnp.einsum("...k,nk->...n", x, self.dequantize(x.dtype))
        return (y.astype(jnp.float32) + self.correction(x)).astype(x.dtype)


class ObservedWeight(AppliedWeight):
    """A weight that hands every activation it meets to a function.

    Lives for one trace: what the function returns must leave that trace as an output.
    """

    def __init__(self, weight: Any, observe: Callable[[Array], None]):
        self.weight, self._observe = weight, observe
        self.shape = tuple(weight.shape)

    def apply(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """The product of the weight inside."""
        self._observe(x)
        if isinstance(self.weight, AppliedWeight):
            return self.weight.apply(x)
        return jnp.einsum("...k,nk->...n", x, dense(self.weight, x.dtype))


__all__ = ["AppliedWeight", "CorrectedWeight", "ObservedWeight", "dense"]
