"""The formats written a second time, in NumPy float64 and ml_dtypes.

Shares no line with the library: rounding is left to ml_dtypes' casts from float64,
where every quotient that can be a tie is exact.
"""

import ml_dtypes
import numpy as np


def truncate(x: np.ndarray) -> np.ndarray:
    """float64 -> float32 towards zero."""
    nearest = x.astype(np.float32)
    return np.where(
        np.abs(nearest.astype(np.float64)) > np.abs(x),
        np.nextafter(nearest, np.float32(0)),
        nearest,
    )


def nvfp4(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes 0..15 not packed, block scales float8_e4m3fn, tensor scale) of [N, K]."""
    amax = np.abs(x).max().astype(np.float32)
    raw = np.clip(amax * np.float32(1 / 2688), np.float32(2**-100), np.float32(2**100))
    significand, exponent = np.frexp(raw.astype(np.float64))
    tensor = np.ldexp(np.floor(significand * 2**17 + 0.5), exponent - 17)
    blocks = x.reshape(x.shape[0], -1, 16).astype(np.float64)
    inverse = truncate(1.0 / (6.0 * tensor))
    quotient = np.abs(blocks).max(-1).astype(np.float32) * inverse
    scales = np.clip(quotient, 2**-9, 448).astype(ml_dtypes.float8_e4m3fn)
    step = scales.astype(np.float64) * tensor
    codes = (blocks / step[..., None]).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn)
    return codes.view(np.uint8).reshape(x.shape), scales, np.float32(tensor)


def nvfp4_values(
    codes: np.ndarray, scales: np.ndarray, tensor: np.ndarray
) -> np.ndarray:
    """float64 [N, K] of what `nvfp4` returned."""
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    step = scales.astype(np.float64) * np.float64(tensor)
    return values * np.repeat(step, 16, axis=-1)


def int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, scales) of [M, K]."""
    amax = np.abs(x).max(-1).astype(np.float32)
    amax = np.clip(amax, np.float32(2**-100), np.float32(2**100))
    inverse = truncate(1.0 / amax.astype(np.float64)) * np.float32(127)
    scaled = np.rint(x.astype(np.float32) * inverse[:, None])
    return scaled.clip(-127, 127).astype(np.int8), amax * np.float32(1 / 127)


def tensors(rows: int = 48, columns: int = 256) -> dict[str, np.ndarray]:
    """float32 [rows, columns] of every kind that a network may hold."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((rows, columns)).astype(np.float32)
    outlier = normal.copy()
    outlier[1, 17] = 5e4
    zero_block = normal.copy()
    zero_block[:, 16:32] = 0
    return {
        "random": normal,
        "heavy_tailed": rng.standard_t(2, (rows, columns)).astype(np.float32),
        "tiny": normal * np.float32(1e-4),
        "huge": normal * np.float32(1e4),
        "zero": np.zeros((rows, columns), np.float32),
        "one_outlier": outlier,
        "zero_block": zero_block,
        "subnormal": normal * np.float32(1e-40),
        "near_the_limit": normal * np.float32(1e36),
        "bfloat16": normal.astype(ml_dtypes.bfloat16).astype(np.float32),
        # halves, so that ties are everywhere
        "grid": rng.integers(-24, 25, (rows, columns)).astype(np.float32) / 4,
    }
