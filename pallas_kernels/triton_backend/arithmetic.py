"""Arithmetic of the Triton kernels; importing it needs the extra `triton`.

Scales and codes equal those of `pallas_kernels.numerics` bit for bit: the same integer
operations and single roundings, which is why kernels that quantize are compiled
without contraction of products and sums.
"""

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore


@triton.jit
def gelu_tanh(x):
    """x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3); as in `gemm.epilogue`."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    # 2^(-2u log2(e)): `tl.exp` costs four instructions more.
    return x / (1.0 + tl.exp2(-2.8853900817779268 * u))


@triton.jit
def round_to_even(x):
    """The nearest whole number, ties to even, for |x| below 2^22."""
    # Adding 1.5 * 2^23 leaves no bits behind the point.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def finite_or_infinite(x):
    """|x| with infinity in place of NaN, so that a maximum cannot lose it."""
    magnitude = tl.abs(x)
    return tl.where(magnitude < float("inf"), magnitude, float("inf"))


@triton.jit
def magnitude_bits(x):
    """Bits of |x| as int32, ordered as |x| is; NaN is above infinity, 0x7F800000."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def reciprocal(x):
    """1/x truncated to 24 bits by integer long division: `numerics.bits.reciprocal`."""
    bits = x.to(tl.uint32, bitcast=True)
    exponent = bits >> 23
    significand = (bits & 0x7FFFFF) | 0x800000
    whole = tl.full(x.shape, 0x80000000, tl.uint32)
    high = whole // significand
    rest = whole - high * significand
    middle = (rest << 8) // significand
    rest = (rest << 8) - middle * significand
    low = (rest << 8) // significand
    quotient = (high << 16) + (middle << 8) + low
    power = ((230 - exponent) << 23).to(tl.float32, bitcast=True)
    return quotient.to(tl.float32) * power


@triton.jit
def int8_scales(amax):
    """(scale, inverse scale) of rows: `numerics.int8.scales_from_amax`."""
    amax = tl.minimum(tl.maximum(amax, 7.888609052210118e-31), 1.2676506002282294e30)
    return amax * 0.007874015718698502, reciprocal(amax) * 127.0


@triton.jit
def encode_int8(x):
    """(values, scales) of the rows of x [rows, K]: `numerics.int8.quantize`."""
    amax = tl.max(magnitude_bits(x), 1)
    valid = amax < 0x7F800000
    scale, inverse = int8_scales(tl.where(valid, amax, 0).to(tl.float32, bitcast=True))
    # Between bounds of 0 everything in a row that is not finite becomes 0, NaN too.
    bound = tl.where(valid, 127.0, 0.0)[:, None]
    scaled = tl.maximum(tl.minimum(x * inverse[:, None], bound), -bound)
    # 1.5 * 2^23 leaves no bits behind the point; the last byte is the whole number,
    # which spares a conversion that runs at a quarter of the speed.
    values = (scaled + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    return values, tl.where(valid, scale, float("nan"))


@triton.jit
def encode_e4m3(x):
    """Bits of the nearest E4M3 for x >= 0: `numerics.bits.encode_e4m3`; no NaN."""
    clipped = tl.minimum(x, 448.0)
    bits = clipped.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    # Subnormals are multiples of 2^-9, the last place of floats near 2^14.
    shifted = (clipped + 16384.0).to(tl.uint32, bitcast=True)
    return tl.where(clipped < 0.015625, shifted - 0x46800000, rounded - 960)


@triton.jit
def decode_e4m3(code):
    """Values of E4M3 bits 0..0x7F as uint32, float32; 0x7F is NaN."""
    normal = ((code << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(code < 8, code.to(tl.float32) * 0.001953125, normal)
    return tl.where(code == 0x7F, float("nan"), value)


@triton.jit
def decode_e2m1(code):
    """Values of E2M1 codes 0..15 given as int32, float32."""
    magnitude = code & 7
    normal = ((magnitude << 22) + (126 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 2, magnitude.to(tl.float32) * 0.5, normal)
    # The sign of zero too, which negation would lose.
    signed = value.to(tl.int32, bitcast=True) | ((code & 8) << 28)
    return signed.to(tl.float32, bitcast=True)


@triton.jit
def encode_e2m1(x, step):
    """Codes of x / step: `numerics.e2m1.encode_scaled`, int32."""
    magnitude = tl.abs(x)
    code = (magnitude > step * 0.25).to(tl.int32)
    code += (magnitude >= step * 0.75).to(tl.int32)
    code += (magnitude > step * 1.25).to(tl.int32)
    code += (magnitude >= step * 1.75).to(tl.int32)
    code += (magnitude > step * 2.5).to(tl.int32)
    code += (magnitude >= step * 3.5).to(tl.int32)
    code += (magnitude > step * 5.0).to(tl.int32)
    sign = (x.to(tl.uint32, bitcast=True) >> 31).to(tl.int32)
    return code | (sign << 3)


@triton.jit
def encode_nvfp4(x, tensor_scale, ROWS: tl.constexpr, K: tl.constexpr):
    """(packed codes, block scales), both uint8: `numerics.nvfp4.quantize`.

    Args:
        x: [ROWS, K] float32, K a power of two.
        tensor_scale: [ROWS], positive.
        ROWS: rows.
        K: channels.
    """
    blocks = tl.reshape(x, (ROWS, K // 16, 16))
    inverse = reciprocal(6.0 * tensor_scale)
    bits = tl.max(magnitude_bits(blocks), 2)
    valid = bits < 0x7F800000
    amax = tl.where(valid, bits, 0).to(tl.float32, bitcast=True)
    scale = tl.maximum(amax * inverse[:, None], 0.001953125)
    code = tl.where(valid, encode_e4m3(scale), 0x7F)
    step = decode_e4m3(code) * tensor_scale[:, None]
    codes = encode_e2m1(blocks, step[:, :, None])
    low, high = tl.reshape(codes, (ROWS, K // 2, 2)).split()
    return (low | (high << 4)).to(tl.uint8), code.to(tl.uint8)


@triton.jit
def load_nvfp4(
    codes_ptr,
    scales_ptr,
    tensor_scale,
    rows,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
):
    """Values of rows of packed codes, [ROWS, K_PADDED] float32, zero beyond K.

    Args:
        codes_ptr: uint8 [M, K / 2].
        scales_ptr: E4M3 bits [M, K / 16].
        tensor_scale: [ROWS].
        rows: [ROWS], all of them exist.
        ROWS: rows.
        K: channels.
        K_PADDED: the next power of two.
    """
    pairs, blocks = tl.arange(0, K_PADDED // 2), tl.arange(0, K_PADDED // 16)
    row = rows.to(tl.int64)[:, None]
    codes = tl.load(
        codes_ptr + row * (K // 2) + pairs[None, :],
        mask=(pairs < K // 2)[None, :],
        other=0,
    ).to(tl.int32)
    scales = tl.load(
        scales_ptr + row * (K // 16) + blocks[None, :],
        mask=(blocks < K // 16)[None, :],
        other=0,
    )
    # A stored scale has no sign; its last bit is cut, as NaN has all of them.
    step = decode_e4m3(scales.to(tl.uint32) & 0x7F) * tensor_scale[:, None]
    codes = tl.reshape(codes, (ROWS, K_PADDED // 16, 8))
    low = decode_e2m1(codes & 0xF) * step[:, :, None]
    high = decode_e2m1(codes >> 4) * step[:, :, None]
    return tl.reshape(tl.join(low, high), (ROWS, K_PADDED))


@triton.jit
def row_tensor_scales(x):
    """Tensor scales of rows, NaN for rows with NaN or Inf: `block_stats.cache`."""
    amax = tl.max(finite_or_infinite(x), 1)
    valid = amax < float("inf")
    scale = tl.where(valid, amax, 0.0) * 0.00037202381645329297
    scale = tl.minimum(tl.maximum(scale, 7.888609052210118e-31), 1.2676506002282294e30)
    bits = (scale.to(tl.uint32, bitcast=True) + 64) & 0xFFFFFF80
    return tl.where(valid, bits.to(tl.float32, bitcast=True), float("nan"))
