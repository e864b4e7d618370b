"""BGR on the NVFP4 grid: better block scales for the same 4.5 bits per value.

Bounded-init Grid Refinement (DVD-Quant, arXiv 2505.18663) alternates between the codes
and the scale of a uniform grid. NVFP4's grid is not uniform and its block scales are
E4M3 numbers, so here, unlike in the paper, the alternation becomes a search: around the
scale that round-to-nearest gives (block amax / 6) only ten E4M3 numbers can be better,
from three below (the largest values saturate) to six above (the largest value becomes 4
instead of 6, which spends the finest steps elsewhere). All are tried, which finds every
point that alternation could end in; ranges wider than that gain less than 0.01%.

The tensor scale is doubled: block scales then reach only 224 and the largest blocks
too have room above them. Doubling is exact, so no block can lose by it; other tensor
scales change the total error by 0.1% either way and make some blocks worse.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.numerics import bits, e2m1, nvfp4
from sixbit_jax.formats import NVFP4Array, rotate

SEARCH_BELOW = 3
SEARCH_ABOVE = 6
_LARGEST_CODE = 0x7E  # 448; 0x7F is NaN
_FIRST_HALVABLE = 16  # codes below it are subnormal, or would be when halved


@partial(jax.jit, static_argnames="rotation")
def refine_nvfp4(w: Float[Array, "*batch n k"], *, rotation: int = 0) -> NVFP4Array:
    """Quantizes w to NVFP4 with the block scales of least squared error.

    Never worse than `NVFP4Array.quantize` in any block, up to the rounding of the
    error sums; the result is stored and used in the same way.

    Args:
      w: float [..., N, K], K a multiple of 16.
      rotation: width of the block Hadamard to fold in along K first; 0 for none.

    Returns:
      The array. A block that holds NaN or Inf gets a NaN scale, as without refinement.

    Raises:
      ValueError: K does not fit blocks of 16 or the rotation.
    """
    start = NVFP4Array.quantize(w, rotation=rotation)
    x = w.astype(jnp.float32)
    x = rotate(x, rotation) if rotation else x
    blocks = x.reshape(*start.block_scales.shape, nvfp4.BLOCK)
    code, tensor_scale = _with_headroom(start, blocks)
    # Without the barriers XLA's CPU code would search once per element.
    blocks, code = jax.lax.optimization_barrier((blocks, code))
    block_scales = _e4m3(_best_scales(blocks, code, tensor_scale[..., None, None]))
    step = block_scales.astype(jnp.float32) * tensor_scale[..., None, None]
    block_scales, step = jax.lax.optimization_barrier((block_scales, step))
    codes = e2m1.encode_scaled(blocks, step[..., None]).reshape(x.shape)
    return NVFP4Array(e2m1.pack(codes), block_scales, tensor_scale, rotation)


def _e4m3(code: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e4m3fn)


def _with_headroom(start: NVFP4Array, blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E4M3 codes of the block scales (int32) and tensor scales, doubled if exact."""
    code = jax.lax.bitcast_convert_type(start.block_scales, jnp.uint8).astype(jnp.int32)
    normal = code >= _FIRST_HALVABLE
    is_nan = code > _LARGEST_CODE
    empty = (blocks == 0).all(-1)
    exact = (normal | (code % 2 == 0) | empty).all((-2, -1))
    exact &= start.tensor_scale <= bits.LARGEST_SCALE / 2
    # A step of 8 codes is an octave of normal numbers; subnormals are multiples.
    halved = jnp.where(normal, code - 8, jnp.maximum(code // 2, 1))
    halved = jnp.where(is_nan, code, halved)
    return (
        jnp.where(exact[..., None, None], halved, code),
        jnp.where(exact, 2 * start.tensor_scale, start.tensor_scale),
    )


def _best_scales(
    blocks: jax.Array, start: jax.Array, tensor_scale: jax.Array
) -> jax.Array:
    # Errors are squared: an exact power of two keeps tiny and huge tensors in range.
    exponent = bits.float_bits(tensor_scale) >> 23
    power = jax.lax.bitcast_convert_type((254 - exponent) << 23, jnp.float32)
    unit = tensor_scale * power
    magnitudes = [jnp.abs(blocks[..., i]) * power for i in range(nvfp4.BLOCK)]

    def squared_error(code: jax.Array) -> jax.Array:
        step = _e4m3(code).astype(jnp.float32) * unit
        inverse = 1.0 / step
        total = jnp.zeros(code.shape, jnp.float32)
        for magnitude in magnitudes:
            difference = magnitude - _round_e2m1(magnitude * inverse) * step
            total = total + difference * difference
        return total

    def attempt(found: tuple, distance: jax.Array) -> tuple:
        best, least = found
        code = jnp.clip(start + distance, 1, _LARGEST_CODE)
        error = squared_error(code)
        # False for NaN: such a block keeps its NaN scale.
        better = error < least
        return (jnp.where(better, code, best), jnp.where(better, error, least)), None

    # A scan, not a Python loop: compiling takes a tenth of the time.
    distances = jnp.asarray([*range(-SEARCH_BELOW, 0), *range(1, SEARCH_ABOVE + 1)])
    (best, _), _ = jax.lax.scan(attempt, (start, squared_error(start)), distances)
    return best


def _round_e2m1(y: jax.Array) -> jax.Array:
    """Nearest E2M1 value of y >= 0, by rounding instead of seven comparisons.

    The reciprocal in y may put a value that lies on a boundary on either side of it,
    where both neighbours have the same error.
    """
    fine, medium, coarse = jnp.round(2 * y) / 2, jnp.round(y), jnp.round(y / 2) * 2
    upper = jnp.where(y < 4, medium, jnp.minimum(coarse, e2m1.E2M1_MAX))
    return jnp.where(y < 2, fine, upper)


__all__ = ["refine_nvfp4"]
