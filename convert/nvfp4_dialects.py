"""Packed NVFP4 as others publish it: six layouts behind a few sets of names.

A linear `X` is stored as `X.weight` (two E2M1 codes per byte, uint8 [N, K/2]), one E4M3
scale per block of 16 (`X.weight_scale`) and one float32 scale per tensor. What differs:

    dialect             even index  block scales    scale of the tensor
    modelopt            low nibble  flat [N, K/16]  weight_scale_2 = amax / 2688
    modelopt-swizzled   low         128x4 tiles     weight_scale_2 = amax / 2688
    comfyui             high        128x4 tiles     weight_scale_2 = amax / 2688
    lightx2v            low         128x4 tiles     weight_global_scale, 1 / it
    bfl                 high        flat [N, K/16]  weight_scale_2 = amax / 2688
    compressed-tensors  low         flat [N, K/16]  weight_global_scale, 1 / it

torchao has names of its own (`nvfp4_names`) and the first layout or, by default, the
second, with or without a scale of the tensor; the shape of its block scales tells.
Tiles are padded to 128 rows and 4 columns. A wrong reading has the right shapes and the
right distribution of values: see `nvfp4_checks`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from convert.nvfp4_names import COMPRESSED, TORCHAO
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import several

BLOCK = 16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_BYTES = np.dtype(np.uint8)
_PADDED_COLUMNS = 16
# Beside the packed weight: read, or of no use to weights.
_TENSOR_SCALES = ("weight_scale_2", "weight_global_scale")
_COMPANIONS = ("weight_scale", *_TENSOR_SCALES, "comfy_quant")
_UNUSED = ("input_scale", "input_global_scale", "alpha", "input_absmax")


@dataclass(frozen=True)
class Layout:
    """How a producer lays out a packed weight.

    Attributes:
      high_first: the even index is in the high nibble.
      tiled: block scales in tiles of 128 x 4, padded.
      reciprocal: the tensor's scale is stored as its reciprocal.
    """

    high_first: bool
    tiled: bool
    reciprocal: bool

    def __str__(self) -> str:
        return (
            f"even index in the {'high' if self.high_first else 'low'} nibble, "
            f"{'128x4 tiled' if self.tiled else 'flat'} block scales, "
            f"{'reciprocal' if self.reciprocal else 'plain'} tensor scale"
        )


DIALECTS: Mapping[str, Layout] = {
    "modelopt": Layout(high_first=False, tiled=False, reciprocal=False),
    "modelopt-swizzled": Layout(high_first=False, tiled=True, reciprocal=False),
    "comfyui": Layout(high_first=True, tiled=True, reciprocal=False),
    "lightx2v": Layout(high_first=False, tiled=True, reciprocal=True),
    "bfl": Layout(high_first=True, tiled=False, reciprocal=False),
    COMPRESSED: Layout(high_first=False, tiled=False, reciprocal=True),
}
CHOICES = ("auto", *DIALECTS, TORCHAO)


def swap_nibbles(codes: np.ndarray) -> np.ndarray:
    """Exchanges the two codes of every byte."""
    return (codes >> 4) | (codes << 4)


def padded(rows: int, columns: int) -> tuple[int, int]:
    """Shape of block scales in whole tiles of 128 x 4."""
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def untile(stored: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Block scales [rows, columns] from their 128x4 tiles.

    A tile of 128 rows is stored as 32 rows of 4 x 4: row 32 b + c, column e of tile d
    lies at [d, c, b, e]. Without effect on which bytes there are.

    Args:
      stored: all bytes, in any shape.
      rows, columns: without padding.
    """
    high, wide = padded(rows, columns)
    tiles = stored.reshape(high // 128, wide // 4, 32, 4, 4)
    return tiles.transpose(0, 3, 2, 1, 4).reshape(high, wide)[:rows, :columns]


@dataclass(frozen=True)
class Packed:
    """A packed matrix in our layout.

    Attributes:
      codes: uint8 [N, K/2], the even index in the low nibble.
      block_scales: float8_e4m3fn [N, K/16].
      tensor_scale: float32.
    """

    codes: np.ndarray
    block_scales: np.ndarray
    tensor_scale: np.float32

    def values(self) -> np.ndarray:
        """The weights, float32 [N, K]."""
        rows, half = self.codes.shape
        pairs = np.stack([self.codes & 15, self.codes >> 4], -1)
        blocks = E2M1[pairs].reshape(rows, 2 * half // BLOCK, BLOCK)
        # Infinity is for the caller to refuse, who knows the name.
        with np.errstate(over="ignore", invalid="ignore"):
            steps = self.block_scales.astype(np.float32) * self.tensor_scale
            return (blocks * steps[..., None]).reshape(rows, 2 * half)


@dataclass(frozen=True)
class PackedInfo(TensorInfo):
    """A packed weight: `read` gives the values that it stands for, float32 [N, K].

    `dtype` is that of these values, float32: a product of three numbers, which no
    narrower one holds. `file` and `offset` are those of the codes, and `shape` may be
    less than what is stored, which some writers pad with zeros.

    Attributes:
      codes, scales: where these parts lie.
      tensor_scale: where the scale of the tensor lies, or None where it is 1.
      layout: how they are laid out.
      grid: rows and columns of the block scales, without the padding of tiles.
    """

    codes: TensorInfo | None = None
    scales: TensorInfo | None = None
    tensor_scale: TensorInfo | None = None
    layout: Layout = DIALECTS["modelopt"]
    grid: tuple[int, int] = (0, 0)

    @property
    def dtype_name(self) -> str:
        """For reports."""
        return "nvfp4"

    def read_scales(self) -> np.ndarray:
        """Reads the block scales, float8_e4m3fn [N, K/16]."""
        assert self.scales is not None
        scales = self.scales.read().reshape(-1).view(_E4M3)
        if self.layout.tiled:
            scales = untile(scales, *self.grid)
        rows, columns = self.shape[0], self.shape[1] // BLOCK
        return np.ascontiguousarray(scales.reshape(self.grid)[:rows, :columns])

    def read_tensor_scale(self) -> np.float32:
        """Reads the scale of the tensor, as it is multiplied."""
        if self.tensor_scale is None:
            return np.float32(1)
        scale = self.tensor_scale.read().astype(np.float32).reshape(-1)[0]
        with np.errstate(divide="ignore", over="ignore"):
            return np.float32(1) / scale if self.layout.reciprocal else scale

    def read_packed(self) -> Packed:
        """Reads the matrix as it is stored, in our layout.

        Raises:
          ConversionError: if what lies outside of the matrix is not zero.
        """
        assert self.codes is not None
        codes = self.codes.read()
        rows, half = self.shape[0], self.shape[1] // 2
        if codes[rows:].any() or codes[:, half:].any():
            raise ConversionError(
                f"{self.file}: expected padding of zeros around the packed weights "
                f"{list(self.shape)}, found others"
            )
        codes = np.ascontiguousarray(codes[:rows, :half])
        if self.layout.high_first:
            codes = swap_nibbles(codes)
        return Packed(codes, self.read_scales(), self.read_tensor_scale())

    def read(self) -> np.ndarray:
        """Reads the matrix and decodes it."""
        return self.read_packed().values()


def is_packed(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a checkpoint holds packed 4-bit weights."""
    return any(
        name.endswith(".weight") and info.dtype == _BYTES and f"{name}_scale" in tensors
        for name, info in tensors.items()
    )


def pack(
    tensors: Mapping[str, TensorInfo], layout: Layout, *, one_level: bool = False
) -> tuple[dict[str, TensorInfo], list[str]]:
    """Replaces every packed weight and its companions by one `PackedInfo`.

    Args:
      tensors: what the files hold, under ModelOpt's names.
      layout: how packed weights are laid out.
      one_level: the scale of the tensor may be left out, and is 1 then.

    Returns:
      The tensors of the network by name, and the names that were left out because they
      only concern activations.

    Raises:
      ConversionError: lists all packed weights whose parts are missing or do not fit.
    """
    problems: list[str] = []
    made: dict[str, TensorInfo] = {}
    unused: list[str] = []
    consumed: set[str] = set()
    for name, info in tensors.items():
        scale_name = f"{name}_scale"
        if not name.endswith(".weight") or info.dtype != _BYTES:
            continue
        if scale_name not in tensors:
            problems.append(f"{name}: expected {scale_name} beside uint8 codes")
            continue
        stem = name.removesuffix("weight")
        # Whichever is there: whether it is the reciprocal, the weights are asked.
        both = [stem + part for part in _TENSOR_SCALES if stem + part in tensors]
        if len(both) > 1 or not (both or one_level):
            names = " or ".join(stem + part for part in _TENSOR_SCALES)
            problems.append(
                f"{name}: expected {names}, found {' and '.join(both) or 'neither'}"
            )
            continue
        tensor_scale = tensors[both[0]] if both else None
        found = _packed_info(name, info, tensors[scale_name], tensor_scale, layout)
        if isinstance(found, str):
            problems.append(found)
        else:
            made[name] = found
        consumed |= {stem + part for part in _COMPANIONS}
        unused += [stem + part for part in _UNUSED if stem + part in tensors]
    if problems:
        raise ConversionError(
            "\n  ".join([f"packed weights ({layout}):", *several(problems)])
        )
    rest = {
        name: info
        for name, info in tensors.items()
        if name not in consumed and name not in unused
    }
    return rest | made, sorted(unused)


def _packed_info(
    name: str,
    codes: TensorInfo,
    scales: TensorInfo,
    tensor_scale: TensorInfo | None,
    layout: Layout,
) -> PackedInfo | str:
    """The packed weight, or what does not fit."""
    if len(codes.shape) != 2 or codes.shape[1] % (BLOCK // 2):
        return f"{name}: expected codes [N, K/2] with whole blocks, found {codes.shape}"
    rows, columns = codes.shape[0], 2 * codes.shape[1] // BLOCK
    if scales.dtype not in (_E4M3, _BYTES):
        return f"{name}_scale: expected float8_e4m3fn or uint8, found {scales.dtype}"
    grid = _grid(rows, columns, scales, tiled=layout.tiled)
    if grid is None:
        flat, tiled = rows * columns, int(np.prod(padded(rows, columns)))
        found = {flat: "flat", tiled: "128x4 tiled"}.get(scales.nbytes, "neither")
        return (
            f"{name}_scale: expected {tiled if layout.tiled else flat:,} scales for "
            f"{rows} x {columns * BLOCK} weights, found {scales.nbytes:,} (flat: "
            f"{flat:,}, 128x4 tiled: {tiled:,}; {found})"
        )
    if tensor_scale is not None and (
        not tensor_scale.is_float or int(np.prod(tensor_scale.shape)) != 1
    ):
        return (
            f"{name}: expected one float as scale of the tensor, found "
            f"{tensor_scale.dtype} {list(tensor_scale.shape)}"
        )
    return PackedInfo(
        dtype=np.dtype(np.float32),
        shape=(rows, columns * BLOCK),
        file=codes.file,
        offset=codes.offset,
        codes=codes,
        scales=scales,
        tensor_scale=tensor_scale,
        layout=layout,
        grid=grid,
    )


def _grid(
    rows: int, columns: int, scales: TensorInfo, *, tiled: bool
) -> tuple[int, int] | None:
    """Rows and columns of the block scales before tiling, or None if none fit.

    ModelOpt's padding to whole columns of 16 leaves more of them than codes have.
    """
    for wide in (columns, -(-columns // _PADDED_COLUMNS) * _PADDED_COLUMNS):
        shape = padded(rows, wide) if tiled else (rows, wide)
        exact = wide == columns or scales.shape == shape
        if exact and scales.nbytes == shape[0] * shape[1]:
            return rows, wide
    return None


def cropped(info: PackedInfo, shape: tuple[int, ...]) -> PackedInfo:
    """The weight without padding, where `shape` is what padding makes the stored one.

    Writers pad rows, or rows and bytes of a row, to multiples of 16.
    """
    if len(shape) != 2 or shape == info.shape or shape[1] % BLOCK:
        return info
    rows, columns = -(-shape[0] // 16) * 16, -(-shape[1] // 32) * 32
    if info.shape in ((rows, shape[1]), (rows, columns)):
        return replace(info, shape=shape)
    return info


def with_layout(info: PackedInfo, layout: Layout) -> PackedInfo:
    """The same bytes, read in another way."""
    return replace(info, layout=layout)


def packed_in(tensors: Mapping[str, TensorInfo]) -> dict[str, PackedInfo]:
    """The packed weights of a checkpoint by name."""
    return {n: info for n, info in tensors.items() if isinstance(info, PackedInfo)}


def names_of(layouts: Iterable[Layout]) -> str:
    """Dialects of layouts, for errors."""
    chosen = set(layouts)
    return " or ".join(name for name, layout in DIALECTS.items() if layout in chosen)


__all__ = [
    "CHOICES",
    "DIALECTS",
    "Layout",
    "Packed",
    "PackedInfo",
    "cropped",
    "is_packed",
    "names_of",
    "pack",
    "packed_in",
    "padded",
    "swap_nibbles",
    "untile",
    "with_layout",
]
