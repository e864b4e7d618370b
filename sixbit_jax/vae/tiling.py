"""Overlapping tiles of a video, coded one by one and blended, by diffusers' rule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig

# A step of streaming: (state or None, chunk) -> (result, state).
Step = Callable[[Any, Array], tuple[Array, Any]]


@dataclass(frozen=True)
class Tiling:
    """Sizes in pixels, multiples of the autoencoder's spatial ratio.

    Attributes:
      height, width: those of a tile.
      stride_height, stride_width: from one tile to the next; the rest of a tile
        overlaps and is blended linearly.
    """

    height: int = 256
    width: int = 256
    stride_height: int = 192
    stride_width: int = 192

    @classmethod
    def cogvideox(cls, config: CogVideoXVAEConfig) -> "Tiling":
        """CogVideoX's default: half the training size, a sixth and a fifth overlap."""
        ratio = config.spatial_compression_ratio
        height, width = config.sample_height // 2, config.sample_width // 2
        # As diffusers computes them, rounding included.
        rows = int(height // ratio * (1 - 1 / 6))
        columns = int(width // ratio * (1 - 1 / 5))
        return cls(height, width, rows * ratio, columns * ratio)

    def checked(self, ratio: int) -> "Tiling":
        """Itself.

        Raises:
          ValueError: unless the sizes fit an autoencoder of `ratio`.
        """
        problems = [
            f"{name}: expected a positive multiple of {ratio}, found {value}"
            for name, value in vars(self).items()
            if value < 1 or value % ratio
        ]
        for side in ("height", "width"):
            tile, stride = getattr(self, side), getattr(self, f"stride_{side}")
            if not tile // 2 <= stride <= tile:
                problems.append(
                    f"stride_{side}: expected {tile // 2} to {tile} (half a tile to a "
                    f"tile), found {stride}"
                )
        if problems:
            raise ValueError("tiling:\n  " + "\n  ".join(problems))
        return self

    def check_last(self, ratio: int, height: int, width: int) -> None:
        """Raises ValueError if the last tiles hold less than a latent pixel."""
        problems = [
            f"{side}: the last tile is {last} pixels, expected at least {ratio}"
            for side, last in (
                ("height", (height - 1) % self.stride_height + 1),
                ("width", (width - 1) % self.stride_width + 1),
            )
            if last < ratio
        ]
        if problems:
            raise ValueError(
                f"tiling of {height}x{width} pixels:\n  " + "\n  ".join(problems)
            )

    def splits(self, height: int, width: int) -> bool:
        """Whether a frame of height x width pixels is more than one tile."""
        return height > self.height or width > self.width

    def scaled(self, ratio: int) -> "Tiling":
        """The same tiles in latent pixels."""
        return Tiling(*(value // ratio for value in vars(self).values()))


def blend(a: Array, b: Array, extent: int, axis: int) -> Array:
    """b with its first `extent` rows faded in over the last ones of a."""
    extent = min(a.shape[axis], b.shape[axis], extent)
    if extent == 0:
        return b
    shape = [1] * b.ndim
    shape[axis] = extent
    fade = (jnp.arange(extent, dtype=jnp.float32) / extent).reshape(shape)
    before = jax.lax.slice_in_dim(a, a.shape[axis] - extent, None, axis=axis)
    after = jax.lax.slice_in_dim(b, 0, extent, axis=axis)
    mixed = before.astype(jnp.float32) * (1 - fade) + after.astype(jnp.float32) * fade
    rest = jax.lax.slice_in_dim(b, extent, None, axis=axis)
    return jnp.concatenate([mixed.astype(b.dtype), rest], axis=axis)


@partial(jax.jit, static_argnames="tiling")
def blend_tiles(
    tiles: Sequence[Sequence[Float[Array, "batch F C h w"]]], *, tiling: Tiling
) -> Float[Array, "batch F C H W"]:
    """One picture from rows of overlapping tiles.

    Each tile is blended with the blended tile above it, then with the blended tile on
    its left, as diffusers does in place.

    Args:
      tiles: rows of tiles.
      tiling: sizes in the pixels of the tiles.

    Returns:
      The kept parts of all tiles side by side.
    """
    above: list[Array] = []
    rows = []
    for row in tiles:
        blended: list[Array] = []
        for column, tile in enumerate(row):
            if above:
                overlap = tiling.height - tiling.stride_height
                tile = blend(above[column], tile, overlap, 3)
            if blended:
                overlap = tiling.width - tiling.stride_width
                tile = blend(blended[-1], tile, overlap, 4)
            blended.append(tile)
        above = blended
        kept = [t[..., : tiling.stride_height, : tiling.stride_width] for t in blended]
        rows.append(jnp.concatenate(kept, axis=4))
    return jnp.concatenate(rows, axis=3)


def tile_chunks(
    step: Step,
    x: Float[Array, "batch F C H W"],
    lengths: Sequence[int],
    *,
    source: Tiling,
    target: Tiling,
) -> Iterator[Array]:
    """Runs a step over every tile of every chunk, in time first, and blends.

    Every tile has its own state, so that frames come out as they are ready.

    Args:
      step: codes one chunk of one tile.
      x: the whole input.
      lengths: frames per chunk.
      source: tiles in the pixels of x.
      target: tiles in the pixels of the result.

    Yields:
      The blended result of each chunk.
    """
    corners = [
        [(i, j) for j in range(0, x.shape[4], source.stride_width)]
        for i in range(0, x.shape[3], source.stride_height)
    ]
    states: dict[tuple[int, int], Any] = {}
    start = 0
    for length in lengths:
        chunk = x[:, start : start + length]
        start += length
        tiles = []
        for line in corners:
            row = []
            for i, j in line:
                tile = chunk[..., i : i + source.height, j : j + source.width]
                coded, states[i, j] = step(states.get((i, j)), tile)
                row.append(coded)
            tiles.append(row)
        yield blend_tiles(tiles, tiling=target)
