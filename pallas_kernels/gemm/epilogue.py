"""What follows the products of a linear layer: its operands, checks and definition."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp

Activation = Literal["gelu_tanh"]


class EpilogueOptions(TypedDict, total=False):
    """Keywords of the matmuls: the attributes of `EpilogueOperands`."""

    bias: jax.Array | None
    activation: Activation | None
    residual: jax.Array | None
    gate: jax.Array | None
    text_gate: jax.Array | None
    text_rows: int


@dataclasses.dataclass(frozen=True)
class EpilogueOperands:
    """The arrays an epilogue reads besides the accumulator.

    Attributes:
        bias: `[N]`.
        activation: applied after the bias.
        residual: `[..., M, N]`, added last.
        gate: `[N]` or `[..., N]` (per batch entry), multiplied before the residual.
        text_gate: like `gate`, for the first `text_rows` of the M rows.
        text_rows: number of rows that use `text_gate`.
    """

    bias: jax.Array | None = None
    activation: Activation | None = None
    residual: jax.Array | None = None
    gate: jax.Array | None = None
    text_gate: jax.Array | None = None
    text_rows: int = 0

    def check(self, operation: str, lead: tuple[int, ...], m: int, n: int) -> None:
        """Raises ValueError unless all shapes belong to an output `[*lead, m, n]`."""
        problems = []
        if self.bias is not None and self.bias.shape != (n,):
            problems.append(f"bias must be {(n,)}, found {self.bias.shape}")
        if self.residual is not None and self.residual.shape != (*lead, m, n):
            problems.append(
                f"residual must be {(*lead, m, n)}, found {self.residual.shape}"
            )
        for name in ("gate", "text_gate"):
            value = getattr(self, name)
            if value is not None and value.shape not in ((n,), (*lead, n)):
                problems.append(
                    f"{name} must be {(n,)} or {(*lead, n)}, found {value.shape}"
                )
        if self.activation not in (None, "gelu_tanh"):
            problems.append(
                f"activation must be None or 'gelu_tanh', found {self.activation!r}"
            )
        if (self.text_gate is not None) != (self.text_rows > 0):
            problems.append(
                "text_gate and text_rows > 0 belong together, found text_gate "
                f"{'given' if self.text_gate is not None else 'missing'} and "
                f"text_rows={self.text_rows}"
            )
        if self.text_gate is not None and self.gate is None:
            problems.append("text_gate needs a gate for the other rows")
        if not 0 <= self.text_rows <= m:
            problems.append(f"text_rows must be in 0..{m}, found {self.text_rows}")
        if problems:
            raise ValueError(f"{operation}: " + "; ".join(problems))


def gelu_tanh(x: jax.Array) -> jax.Array:
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + e^-2u).

    The second form keeps its relative accuracy for negative x, where 1 + tanh cancels.
    """
    u = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    return x / (1.0 + jnp.exp(-2.0 * u))


def apply(y: jax.Array, operands: EpilogueOperands, out_dtype) -> jax.Array:
    """The definition: bias, activation, gate, residual, in float32, rounded once.

    Args:
        y: `[..., M, N]` float32, the scaled products.
        operands: what to apply.
        out_dtype: dtype of the result.

    Returns:
        `[..., M, N]` in `out_dtype`.
    """
    if operands.bias is not None:
        y = y + operands.bias.astype(jnp.float32)
    if operands.activation == "gelu_tanh":
        y = gelu_tanh(y)
    if operands.gate is not None:
        gate = operands.gate.astype(jnp.float32)[..., None, :]
        if operands.text_gate is not None:
            text = operands.text_gate.astype(jnp.float32)[..., None, :]
            rows = jnp.arange(y.shape[-2])[:, None]
            gate = jnp.where(rows < operands.text_rows, text, gate)
        y = y * gate
    if operands.residual is not None:
        y = y + operands.residual.astype(jnp.float32)
    return y.astype(out_dtype)
