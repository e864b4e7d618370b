"""Timestep and positional embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.nn.linear import Linear


def sinusoidal_embedding(
    values: Float[Array, "batch"],
    dim: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0.0,
    max_period: float = 10_000.0,
    rounded_once: bool = False,
) -> Float[Array, "batch dim"]:
    """Sines and cosines of a scalar at `dim / 2` frequencies (DDPM, appendix B).

    Args:
      values: timesteps (or the `ofs` scalar), [batch].
      dim: width of the embedding, even.
      flip_sin_to_cos: cosines first.
      freq_shift: subtracted from the number of frequencies in the exponent.
      max_period: period of the slowest frequency.
      rounded_once: frequencies that are computed in float64. In float32, as the
        published networks of timesteps up to 1000 have always run here, some are one
        bit off; at a value of 6000 (an embedded guidance scale) that is 5e-4 radians.

    Returns:
      float32 [batch, dim].
    """
    half = dim // 2
    exponent = -math.log(max_period) * np.arange(half, dtype=np.float32)
    exponent = exponent / np.float32(half - freq_shift)
    exponent = exponent.astype(np.float64 if rounded_once else np.float32)
    frequencies = np.exp(exponent).astype(np.float32)
    angles = values.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two linears with SiLU between them (diffusers `TimestepEmbedding`)."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.linear_1 = Linear(in_dim, out_dim, rngs=rngs)
        self.linear_2 = Linear(out_dim, out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "batch in_dim"]) -> Float[Array, "batch out"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


def _sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    omega = 1.0 / 10_000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = np.outer(positions.reshape(-1).astype(np.float64), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_3d(
    dim: int,
    *,
    frames: int,
    height: int,
    width: int,
    spatial_scale: float,
    temporal_scale: float,
) -> np.ndarray:
    """Fixed 3D position table of CogVideoX-2b.

    A quarter of the channels encodes time, the rest space, of which the first half
    encodes the column (the order that diffusers uses).

    Args:
      dim: width of the model, divisible by 16.
      frames, height, width: size of the token grid.
      spatial_scale, temporal_scale: positions are divided by these.

    Returns:
      float32 [frames * height * width, dim].
    """
    spatial_dim, temporal_dim = 3 * dim // 4, dim // 4
    rows = np.arange(height, dtype=np.float32) / np.float32(spatial_scale)
    columns = np.arange(width, dtype=np.float32) / np.float32(spatial_scale)
    grid_w, grid_h = np.meshgrid(columns, rows)
    half = spatial_dim // 2
    spatial = np.concatenate([_sincos_1d(half, grid_w), _sincos_1d(half, grid_h)], 1)
    times = np.arange(frames, dtype=np.float32) / np.float32(temporal_scale)
    temporal = _sincos_1d(temporal_dim, times)
    table = np.concatenate(
        [
            np.repeat(temporal[:, None], height * width, axis=1),
            np.repeat(spatial[None], frames, axis=0),
        ],
        axis=-1,
    )
    return table.reshape(-1, dim).astype(np.float32)
