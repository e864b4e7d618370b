"""Queries or keys with the norm and the rotary embedding that they still need."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt32

# Cosines and sines as 16-bit whole numbers of this many per unit, 2^15 added.
TABLE_SCALE = 32767.0
TABLE_OFFSET = 32768


class Rotary(NamedTuple):
    """Rotary embedding of interleaved channel pairs; host arrays, so constants.

    Attributes:
      cos, sin: [tokens - text_rows, head_dim / 2] float32.
      text_rows: first tokens, which stay as they are.
    """

    cos: np.ndarray
    sin: np.ndarray
    text_rows: int = 0

    def full(self) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin of all tokens, text included."""
        ones = np.ones((self.text_rows, self.cos.shape[-1]), np.float32)
        return np.concatenate([ones, self.cos]), np.concatenate([0 * ones, self.sin])

    def packed(self) -> UInt32[np.ndarray, "tokens pairs"]:
        """Both in one word, cosine low, as offset 16-bit numbers (error 1.5e-5)."""
        cos, sin = (
            np.round(x * TABLE_SCALE).astype(np.int32) + TABLE_OFFSET
            for x in self.full()
        )
        return (cos | sin << 16).astype(np.uint32)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Operands of the front end of attention, for queries or for keys.

        y = (x - mean(x)) / sqrt(var(x) + eps)      per token and head, norm = "layer"
        y = x / sqrt(mean(x^2) + eps)               per token and head, norm = "rms"
        y = x * row_factor                          per token
        y = y * weight + bias
        pairs (y0, y1) -> (y0 cos - y1 sin, y1 cos + y0 sin)

    Attributes:
      x: [batch, tokens, heads, head_dim].
      norm: "layer", "rms" or None.
      row_factor: [batch, tokens] float32, e.g. 1 / rms over all heads; or None.
      weight, bias: [head_dim] or [heads, head_dim], or None.
      eps: the epsilon of the norm.
      rotary: cosines and sines, or None.

    Raises:
      ValueError: an operand has another shape, or an option is unknown.
    """

    x: Float[Array, "batch tokens heads head_dim"]
    norm: Literal["layer", "rms"] | None = None
    row_factor: Float32[Array, "batch tokens"] | None = None
    weight: Float[Array, "*heads head_dim"] | None = None
    bias: Float[Array, "*heads head_dim"] | None = None
    eps: float = 1e-6
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 4:
            raise ValueError(
                f"x must be [batch, tokens, heads, head_dim], found {self.x.shape}"
            )
        batch, tokens, heads, head_dim = self.x.shape
        if self.norm not in (None, "layer", "rms"):
            raise ValueError(
                f"norm must be None, 'layer' or 'rms', found {self.norm!r}"
            )
        factor = self.row_factor
        if factor is not None and factor.shape != (batch, tokens):
            raise ValueError(
                f"row_factor must be {(batch, tokens)}, found {factor.shape}"
            )
        for name in ("weight", "bias"):
            value = getattr(self, name)
            wanted = ((head_dim,), (heads, head_dim))
            if value is not None and value.shape not in wanted:
                raise ValueError(
                    f"{name} must be {wanted[0]} or {wanted[1]}, found {value.shape}"
                )
        if self.rotary is not None:
            wanted = (tokens - self.rotary.text_rows, head_dim // 2)
            for name, table in (("cos", self.rotary.cos), ("sin", self.rotary.sin)):
                if table.shape != wanted:
                    raise ValueError(
                        f"rotary.{name} must be {wanted} for x {self.x.shape} with "
                        f"{self.rotary.text_rows} text rows, found {table.shape}"
                    )

    @property
    def untouched(self) -> bool:
        """Whether nothing is to be done."""
        parts = (self.row_factor, self.weight, self.bias, self.rotary)
        return self.norm is None and all(part is None for part in parts)

    def values(self) -> Float32[Array, "batch tokens heads head_dim"]:
        """The definition, float32 throughout."""
        y = self.x.astype(jnp.float32)
        if self.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        if self.norm:
            y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.row_factor is not None:
            y = y * self.row_factor[..., None, None]
        if self.weight is not None:
            y = y * self.weight.astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias.astype(jnp.float32)
        if self.rotary is None:
            return y
        cos, sin = (part[:, None, :] for part in self.rotary.full())
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        real, imaginary = pairs[..., 0], pairs[..., 1]
        turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
        return jnp.stack(turned, -1).reshape(y.shape)

    def every(self, stride: int) -> "Heads":
        """Every `stride`-th token."""
        rotary = self.rotary
        if rotary is not None:
            cos, sin = rotary.full()
            rotary = Rotary(cos[::stride], sin[::stride])
        factor = None if self.row_factor is None else self.row_factor[:, ::stride]
        x = self.x[:, ::stride]
        return dataclasses.replace(self, x=x, row_factor=factor, rotary=rotary)
