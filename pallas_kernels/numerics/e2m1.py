"""E2M1, the four-bit float of NVFP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

Codes are the bits of ml_dtypes.float4_e2m1fn: sign, two exponent bits, one mantissa
bit. Two codes share a byte, the even index in the low nibble.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from pallas_kernels.numerics.bits import float_bits

E2M1_MAX = 6.0
# Boundary between neighbours, whether the boundary itself belongs to the upper one
# (ties go to the even code), and the distance of the two neighbours.
BOUNDARIES = (
    (0.25, False, 0.5),
    (0.75, True, 0.5),
    (1.25, False, 0.5),
    (1.75, True, 0.5),
    (2.5, False, 1.0),
    (3.5, True, 1.0),
    (5.0, False, 2.0),
)


def encode_scaled(
    x: Float[Array, "..."], step: Float[Array, "..."]
) -> UInt8[Array, "..."]:
    """Codes of x / step without a division: |x| is compared to boundary * step.

    Args:
      x: any float.
      step: positive, broadcastable against x. NaN gives the code of zero.

    Returns:
      Codes 0..15, to nearest, ties to even, saturating at 6.
    """
    x = x.astype(jnp.float32)
    step = step.astype(jnp.float32)
    magnitude = jnp.abs(x)
    code = jnp.zeros(jnp.broadcast_shapes(x.shape, step.shape), jnp.uint8)
    for boundary, upper, _ in BOUNDARIES:
        code = code + _above(magnitude, step * boundary, upper).astype(jnp.uint8)
    sign = (float_bits(x) >> 31).astype(jnp.uint8)
    return code | (sign << 3)


def round_scaled(
    x: Float[Array, "..."], step: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`decode(encode_scaled(x, step))` in float32, without making the codes."""
    x = x.astype(jnp.float32)
    step = step.astype(jnp.float32)
    magnitude = jnp.abs(x)
    value = jnp.zeros(jnp.broadcast_shapes(x.shape, step.shape), jnp.float32)
    for boundary, upper, distance in BOUNDARIES:
        value = value + jnp.where(
            _above(magnitude, step * boundary, upper), jnp.float32(distance), 0.0
        )
    return jnp.where(jnp.signbit(x), -value, value)


def _above(magnitude: jax.Array, limit: jax.Array, inclusive: bool) -> jax.Array:
    return magnitude >= limit if inclusive else magnitude > limit


def encode(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Codes of the nearest E2M1 values, ties to even, saturating at 6.

    Args:
      x: any float. NaN gives a zero; E2M1 has neither NaN nor infinity.

    Returns:
      uint8 codes 0..15; negative values that round to zero keep their sign (8).
    """
    return encode_scaled(x, jnp.float32(1.0))


def decode(
    codes: UInt8[Array, "..."], dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "..."]:
    """Values of E2M1 codes 0..15; exact in every float type down to E4M3."""
    magnitude = (codes & 7).astype(jnp.uint32)
    # Exponent and mantissa of codes 2..7 are those of a float32 whose bias is 126
    # higher; codes 0 and 1 are subnormal in E2M1 and would be in float32 as well.
    normal = jax.lax.bitcast_convert_type(
        (magnitude << 22) + jnp.uint32(126 << 23), jnp.float32
    )
    value = jnp.where(magnitude < 2, magnitude.astype(jnp.float32) * 0.5, normal)
    return jnp.where(codes & 8, -value, value).astype(dtype)


def pack(codes: UInt8[Array, "*batch k"]) -> UInt8[Array, "*batch half_k"]:
    """Two codes per byte along the last axis, the even index in the low nibble.

    Raises:
      ValueError: the last axis is odd.
    """
    if codes.shape[-1] % 2:
        raise ValueError(
            f"E2M1 codes are packed in pairs: expected an even last axis, found "
            f"shape {codes.shape}"
        )
    pairs = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 2, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def unpack(packed: UInt8[Array, "*batch half_k"]) -> UInt8[Array, "*batch k"]:
    """The inverse of `pack`: codes 0..15."""
    pairs = jnp.stack([packed & 0xF, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])
