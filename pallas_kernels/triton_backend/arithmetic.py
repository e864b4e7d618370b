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
    return x / (1.0 + tl.exp(-2.0 * u))


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
