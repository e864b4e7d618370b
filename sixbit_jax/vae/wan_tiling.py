"""Tiles of the Wan VAE: frames cut, computed one by one, and blended, as diffusers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.vae.wan_config import WanVAEConfig


@dataclass(frozen=True)
class WanTiling:
    """How frames are cut into tiles; names and defaults are diffusers'.

    With `patch_size`, the encoder's tiles are that much larger than these, and the
    decoder's are not: so it is in diffusers.

    Attributes:
      tile_sample_min_height, tile_sample_min_width: size of a tile, pixels.
      tile_sample_stride_height, tile_sample_stride_width: from tile to tile; what is
        left of a tile overlaps the next and is blended with it.
    """

    tile_sample_min_height: int = 256
    tile_sample_min_width: int = 256
    tile_sample_stride_height: int = 192
    tile_sample_stride_width: int = 192

    def __post_init__(self):
        problems = []
        for axis in ("height", "width"):
            size = getattr(self, f"tile_sample_min_{axis}")
            stride = getattr(self, f"tile_sample_stride_{axis}")
            if not 1 <= stride <= size:
                problems.append(
                    f"tile_sample_stride_{axis}: expected from 1 to "
                    f"tile_sample_min_{axis} ({size}), found {stride}"
                )
        if problems:
            raise ValueError("Wan tiling:\n  " + "\n  ".join(problems))

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile, pixels."""
        return self.tile_sample_min_height, self.tile_sample_min_width

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns from tile to tile, pixels."""
        return self.tile_sample_stride_height, self.tile_sample_stride_width


@dataclass(frozen=True)
class Grid:
    """Tiles of frames of one size; one tile of everything if there is no tiling.

    Attributes:
      size: (rows, columns) of what goes in.
      tile: of a tile of it.
      stride: from tile to tile of it.
      made: rows and columns of what comes out of the whole.
      kept: of a tile of what comes out.
      blend: rows and columns of it that are mixed with the tile before.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    stride: tuple[int, int]
    made: tuple[int, int]
    kept: tuple[int, int]
    blend: tuple[int, int]

    @classmethod
    def for_decoder(
        cls, config: WanVAEConfig, tiling: WanTiling | None, size: Sequence[int]
    ) -> "Grid":
        """Tiles of latents of `size`; what comes out is before `patch_size`.

        Raises:
          ValueError: if tiles are not whole latent pixels.
        """
        factor, patch = config.scale_factor_spatial, config.patch
        if tiling is None:
            return cls._one(size, factor // patch, 1)
        _check_whole(tiling, factor)
        tile, stride = (_divided(x, factor) for x in (tiling.tile, tiling.stride))
        if size[0] <= tile[0] and size[1] <= tile[1]:
            return cls._one(size, factor // patch, 1)
        kept = _divided(tiling.stride, patch)
        wide = _divided(tiling.tile, patch)
        return cls(
            size=(size[0], size[1]),
            tile=tile,
            stride=stride,
            made=(size[0] * factor // patch, size[1] * factor // patch),
            kept=kept,
            blend=(wide[0] - kept[0], wide[1] - kept[1]),
        )

    @classmethod
    def for_encoder(
        cls, config: WanVAEConfig, tiling: WanTiling | None, size: Sequence[int]
    ) -> "Grid":
        """Tiles of a video of `size`, after `patch_size`; latents come out.

        Raises:
          ValueError: if tiles are not whole latent pixels.
        """
        patch = config.patch
        factor = config.scale_factor_spatial // patch
        if tiling is None:
            return cls._one(size, 1, factor)
        _check_whole(tiling, factor)
        if all(s * patch <= t for s, t in zip(size, tiling.tile, strict=True)):
            return cls._one(size, 1, factor)
        kept, wide = (_divided(x, factor) for x in (tiling.stride, tiling.tile))
        return cls(
            size=(size[0], size[1]),
            tile=tiling.tile,
            stride=tiling.stride,
            made=_divided((size[0], size[1]), factor),
            kept=kept,
            blend=(wide[0] - kept[0], wide[1] - kept[1]),
        )

    @classmethod
    def _one(cls, size: Sequence[int], up: int, down: int) -> "Grid":
        whole = (size[0], size[1])
        made = (whole[0] * up // down, whole[1] * up // down)
        return cls(whole, whole, whole, made, made, (0, 0))

    @property
    def shape(self) -> tuple[int, int]:
        """How many tiles, down and across."""
        rows, columns = (
            -(-size // stride)
            for size, stride in zip(self.size, self.stride, strict=True)
        )
        return rows, columns

    def slices(self) -> list[tuple[slice, slice]]:
        """Rows and columns of every tile, row by row; those at the end are shorter."""
        rows, columns = (
            [slice(i, i + tile) for i in range(0, size, stride)]
            for size, tile, stride in zip(
                self.size, self.tile, self.stride, strict=True
            )
        )
        return [(r, c) for r in rows for c in columns]

    def largest(self) -> int:
        """Pixels that go into the largest tile."""
        return min(self.size[0], self.tile[0]) * min(self.size[1], self.tile[1])


def _divided(sizes: tuple[int, int], by: int) -> tuple[int, int]:
    return sizes[0] // by, sizes[1] // by


def _check_whole(tiling: WanTiling, factor: int) -> None:
    problems = [
        f"{name}: expected a multiple of {factor} pixels, found {value}"
        for name, value in vars(tiling).items()
        if value % factor
    ]
    if problems:
        raise ValueError("Wan tiling:\n  " + "\n  ".join(problems))


@partial(jax.jit, static_argnames="grid")
def join(
    tiles: Sequence[Float[Array, "batch F _ _ C"]], grid: Grid
) -> Float[Array, "batch F H W C"]:
    """Blends tiles, row by row as `Grid.slices` orders them, into whole frames.

    Each is mixed with the one above it, then with the one to its left, both of which
    are mixed already.
    """
    if len(tiles) == 1:
        return tiles[0]
    columns = grid.shape[1]
    mixed: list[list[Array]] = []
    for i in range(grid.shape[0]):
        row: list[Array] = []
        for j, tile in enumerate(tiles[i * columns : (i + 1) * columns]):
            if i > 0:
                tile = _mix(mixed[i - 1][j], tile, grid.blend[0], axis=2)
            if j > 0:
                tile = _mix(row[j - 1], tile, grid.blend[1], axis=3)
            row.append(tile)
        mixed.append(row)
    height, width = grid.kept
    rows = [
        jnp.concatenate([tile[:, :, :height, :width] for tile in row], 3)
        for row in mixed
    ]
    return jnp.concatenate(rows, 2)[:, :, : grid.made[0], : grid.made[1]]


def _mix(before: Array, tile: Array, extent: int, *, axis: int) -> Array:
    """Goes over from the end of the tile before to this one, linearly."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    shape = [1] * tile.ndim
    shape[axis] = extent
    share = (jnp.arange(extent, dtype=jnp.float32) / max(extent, 1)).reshape(shape)
    old = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    new = jax.lax.slice_in_dim(tile, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(tile, extent, None, axis=axis)
    both = (old * (1 - share) + new * share).astype(tile.dtype)
    return jnp.concatenate([both, rest], axis)
