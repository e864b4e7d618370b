"""Deterministic arrays from names, so that golden files need not store inputs.

The stream is made from the raw output of a PCG64 bit generator, which NumPy
guarantees to keep: distributions such as `Generator.normal` may change between
releases, and the golden outputs would then be wrong without notice.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

_NORMS = ("norm", "norm_final", "norm_q", "norm_k", "norm_added_k", "norm1", "norm2")


def random_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise of zero mean and unit variance that depends on name and shape.

    Args:
      name: seeds the stream.
      shape: shape of the result.

    Returns:
      float32 array in [-sqrt(3), sqrt(3)).
    """
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    unit = (np.atleast_1d(bits) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((unit * 2 - 1) * math.sqrt(3)).astype(np.float32).reshape(shape)


def _is_norm(key: str) -> bool:
    module = key.split(".")[-2]
    return module in _NORMS


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights of a state dict at the scale of a working network.

    Args:
      shapes: state dict key -> shape. Matrices are `[out, in, ...]`.

    Returns:
      key -> float32 array: matrices of variance 1 / fan-in, norm weights around 1,
      biases of standard deviation 0.1, other arrays of standard deviation 0.5.
    """
    weights = {}
    for key, shape in shapes.items():
        noise = random_array(key, tuple(shape))
        if key.endswith(".weight") and _is_norm(key):
            weights[key] = (1 + 0.1 * noise).astype(np.float32)
        elif key.endswith(".weight"):
            scale = np.float32(1 / math.sqrt(math.prod(shape[1:])))
            weights[key] = noise * scale
        elif key.endswith(".bias"):
            weights[key] = noise * np.float32(0.1)
        else:
            weights[key] = noise * np.float32(0.5)
    return weights
