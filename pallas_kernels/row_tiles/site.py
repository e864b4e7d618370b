"""The activation of a site: what the quantizing ops take, and its definition."""

import dataclasses
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Float32

from pallas_kernels.numerics.hadamard import block_hadamard
from pallas_kernels.row_tiles.front import ROTATION, Front


class FrontOptions(TypedDict, total=False):
    """Keywords of the quantizing ops: the attributes of `SiteInput` besides x."""

    norm: Literal["layer"] | None
    norm_weight: Float[Array, " k"] | None
    norm_bias: Float[Array, " k"] | None
    eps: float
    shift: Float[Array, "*batch k"] | None
    scale: Float[Array, "*batch k"] | None
    text_shift: Float[Array, "*batch k"] | None
    text_scale: Float[Array, "*batch k"] | None
    text_rows: int
    activation: Literal["gelu_tanh"] | None
    rotation: int


@dataclasses.dataclass(frozen=True)
class SiteInput:
    """Operands of the front end of a quantization.

        y = x, or LayerNorm(x) * norm_weight + norm_bias
        y = y * (1 + scale) + shift            per batch element and kind of row
        y = GELU(y)                            tanh form
        rotated by the block Hadamard; float32 throughout

    Kernels may let 16 bits of y into the rotation: bfloat16 behind GELU, float16 behind
    a norm, x itself otherwise.

    Attributes:
      x: [..., M, K].
      norm: "layer" or None.
      norm_weight, norm_bias: [K] or None.
      eps: added to the variance of the norm.
      shift, scale: [..., K] (the leading axes of x) or None.
      text_shift, text_scale: the same for the first `text_rows` rows.
      text_rows: rows that use them.
      activation: "gelu_tanh" or None.
      rotation: 128, or 0 for none.

    Raises:
      ValueError: an operand has another shape, or an option is unknown.
    """

    x: Float[Array, "*batch m k"]
    norm: Literal["layer"] | None = None
    norm_weight: Float[Array, " k"] | None = None
    norm_bias: Float[Array, " k"] | None = None
    eps: float = 1e-5
    shift: Float[Array, "*batch k"] | None = None
    scale: Float[Array, "*batch k"] | None = None
    text_shift: Float[Array, "*batch k"] | None = None
    text_scale: Float[Array, "*batch k"] | None = None
    text_rows: int = 0
    activation: Literal["gelu_tanh"] | None = None
    rotation: int = ROTATION

    def __post_init__(self) -> None:
        if self.x.ndim < 2:
            raise ValueError(f"x must be [..., M, K], found shape {self.x.shape}")
        k, batch = self.x.shape[-1], self.x.shape[:-2]
        wanted = {
            "norm_weight": (k,),
            "norm_bias": (k,),
            "shift": (*batch, k),
            "scale": (*batch, k),
            "text_shift": (*batch, k),
            "text_scale": (*batch, k),
        }
        for name, shape in wanted.items():
            operand = getattr(self, name)
            if operand is not None and operand.shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape} for x of shape {self.x.shape}, "
                    f"found {operand.shape}"
                )
        if self.norm not in (None, "layer"):
            raise ValueError(f"norm must be None or 'layer', found {self.norm!r}")
        if self.norm is None and not (self.norm_weight is self.norm_bias is None):
            raise ValueError("norm_weight and norm_bias need norm='layer'")
        if self.activation not in (None, "gelu_tanh"):
            raise ValueError(
                f"activation must be None or 'gelu_tanh', found {self.activation!r}"
            )
        if self.rotation not in (0, ROTATION):
            raise ValueError(f"rotation must be 0 or {ROTATION}, found {self.rotation}")
        if not 0 <= self.text_rows <= self.x.shape[-2]:
            raise ValueError(
                f"text_rows must be between 0 and {self.x.shape[-2]}, found "
                f"{self.text_rows}"
            )
        text = self.text_shift is not None or self.text_scale is not None
        if text and not self._modulated:
            raise ValueError("text_shift and text_scale need shift or scale")
        if self._modulated and self.text_rows and not text:
            raise ValueError("text_rows needs text_shift or text_scale")

    @property
    def _modulated(self) -> bool:
        return self.shift is not None or self.scale is not None

    @property
    def _affine(self) -> bool:
        norm = self.norm_weight is not None or self.norm_bias is not None
        return norm or self._modulated

    def _factor_and_addend(
        self, shift: jax.Array | None, scale: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Norm weights and modulation as one factor and addend, [..., K] float32."""
        shape = (*self.x.shape[:-2], self.x.shape[-1]) if self._modulated else (1,)

        def full(operand: jax.Array | None, default: float) -> jax.Array:
            if operand is None:
                return jnp.full(shape, default, jnp.float32)
            return operand.astype(jnp.float32)

        factor = full(self.norm_weight, 1.0) * (1.0 + full(scale, 0.0))
        addend = full(self.norm_bias, 0.0) * (1.0 + full(scale, 0.0)) + full(shift, 0.0)
        k = self.x.shape[-1:]
        whole = jnp.broadcast_shapes(factor.shape, k)
        return jnp.broadcast_to(factor, whole), jnp.broadcast_to(addend, whole)

    def activation_values(self) -> Float32[Array, "*batch m k"]:
        """y before the rotation: the definition."""
        x = self.x
        y = x.astype(jnp.float32)
        if self.norm:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
            variance = jnp.mean(y * y, axis=-1, keepdims=True)
            y = y * jax.lax.rsqrt(variance + self.eps)
        if self._affine:
            factor, addend = self._factor_and_addend(self.shift, self.scale)
            if self._modulated:
                text = self._factor_and_addend(self.text_shift, self.text_scale)
                is_text = (jnp.arange(x.shape[-2]) < self.text_rows)[:, None]
                factor, addend = (
                    jnp.where(is_text, t[..., None, :], v[..., None, :])
                    for t, v in zip(text, (factor, addend), strict=True)
                )
            y = y * factor + addend
        if self.activation:
            y = jax.nn.gelu(y, approximate=True)
        return y

    def rotated(
        self, values: Float32[Array, "*batch m k"]
    ) -> Float32[Array, "*batch m k"]:
        """The activation as it is quantized."""
        return block_hadamard(values, self.rotation) if self.rotation else values

    def kernel_operands(
        self, *, stats: bool
    ) -> tuple[jax.Array, jax.Array | None, Front]:
        """x as rows [M', K], the packed affine map and the static front end.

        Raises:
          NotImplementedError: a dtype or K that the row kernels do not take.
        """
        x = self.x
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"row kernels read bfloat16, found {x.dtype}")
        affine = None
        if self._affine:
            video = self._factor_and_addend(self.shift, self.scale)
            text = self._factor_and_addend(self.text_shift, self.text_scale)
            k = x.shape[-1]
            factor, addend = (
                jnp.stack([t.reshape(-1, k), v.reshape(-1, k)], axis=1).reshape(-1, k)
                if self._modulated
                else v.reshape(1, k)
                for t, v in zip(text, video, strict=True)
            )
            affine = jnp.stack([_float16(factor), _float16(addend)], axis=1)
        front = Front(
            layer_norm=self.norm is not None,
            eps=self.eps,
            affine=self._affine,
            rows_per_batch=x.shape[-2] if self._modulated else 0,
            text_rows=self.text_rows,
            gelu=self.activation is not None,
            rotation=self.rotation,
            stats=stats,
        )
        return x.reshape(-1, x.shape[-1]), affine, front


def _float16(x: Float32[Array, "*shape"]) -> Float16[Array, "*shape"]:
    """x as float16, saturating."""
    largest = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(x, -largest, largest).astype(jnp.float16)


def outlier_of(values: Float[Array, "..."]) -> Float32[Array, ""]:
    """max|y| / mean|y| of an activation (rule A of 6Bit-Diffusion)."""
    magnitude = jnp.abs(values.astype(jnp.float32))
    return jnp.max(magnitude) / jnp.mean(magnitude)


def outlier_of_partials(
    partials: Float32[Array, "tiles warps 2"] | None, size: int
) -> Float32[Array, ""] | None:
    """`outlier_of` from the partial sums and maxima that a kernel wrote."""
    if partials is None:
        return None
    return jnp.max(partials[..., 1]) / (jnp.sum(partials[..., 0]) / size)
