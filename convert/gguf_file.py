"""GGUF files, tensor by tensor: the format of llama.cpp, stable-diffusion.cpp, ComfyUI.

The header is read here, within bounds; blocks of quantized values are expanded by the
`gguf` package (NumPy), a few thousand at a time.

    magic "GGUF", version (2 or 3), numbers of tensors and of notes
    notes:    name, type, value
    tensors:  name, number of axes, sizes (the last axis first), type, offset
    data:     each tensor at a multiple of general.alignment
"""

import itertools
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import brief, named, several
from sixbit_jax.reading.regular_file import open_regular

SUFFIX = ".gguf"
# Of networks that are converted; a file of another is refused by its name.
ARCHITECTURES = ("wan", "cogvideox", "hyvid")

_VERSIONS = (2, 3)
_PLAIN: Mapping[int, np.dtype] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    24: np.dtype(np.int8),
    25: np.dtype(np.int16),
    26: np.dtype(np.int32),
    27: np.dtype(np.int64),
    28: np.dtype(np.float64),
    30: np.dtype(ml_dtypes.bfloat16),
}


class _Blocks(NamedTuple):
    """A quantized type: name, values and bytes of a block."""

    name: str
    values: int
    nbytes: int


_QUANTIZED: Mapping[int, _Blocks] = {
    2: _Blocks("Q4_0", 32, 18),
    3: _Blocks("Q4_1", 32, 20),
    6: _Blocks("Q5_0", 32, 22),
    7: _Blocks("Q5_1", 32, 24),
    8: _Blocks("Q8_0", 32, 34),
    10: _Blocks("Q2_K", 256, 84),
    11: _Blocks("Q3_K", 256, 110),
    12: _Blocks("Q4_K", 256, 144),
    13: _Blocks("Q5_K", 256, 176),
    14: _Blocks("Q6_K", 256, 210),
    20: _Blocks("IQ4_NL", 32, 18),
    23: _Blocks("IQ4_XS", 256, 136),
}
# Known to the format and not read.
_OTHERS: Mapping[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
# Of the notes: types with a fixed size, by number.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _ARRAY = 8, 9
# Convolutions of five axes.
_PATCHES = ("patch_embedding.weight", "img_in.proj.weight", "x_embedder.proj.weight")
_SHAPE = "comfy.gguf.orig_shape."
# What is remembered of the notes; the rest (tokens of language models) is passed over.
_KEPT = ("general.architecture", "general.alignment", "split.count", _SHAPE)
_MOST = 100_000
_MOST_AXES = 8
_LONGEST_NAME, _LONGEST_TEXT = 4096, 16 * 2**20
_MOST_VALUES = 4_000_000
# Of a block-quantized tensor, expanded at once.
_AT_ONCE = 4096


@dataclass(frozen=True)
class GGUFInfo(TensorInfo):
    """A tensor in blocks: `read` gives its values, float32.

    `dtype` is that of the values.

    Attributes:
      kind: number of the type.
    """

    kind: int = 0

    @property
    def dtype_name(self) -> str:
        """For reports."""
        return f"GGUF {_QUANTIZED[self.kind].name}"

    @property
    def stored(self) -> TensorInfo:
        """The blocks, uint8 [blocks, bytes]."""
        blocks = _QUANTIZED[self.kind]
        shape = (math.prod(self.shape) // blocks.values, blocks.nbytes)
        return TensorInfo(np.dtype(np.uint8), shape, self.file, self.offset)

    def read(self) -> np.ndarray:
        """Reads the blocks and expands them.

        Raises:
          ConversionError: if the file ends before, or the package is not there.
        """
        quants, kind = _package(self.file), _QUANTIZED[self.kind]
        stored = self.stored.read()
        values = np.empty((len(stored), kind.values), np.float32)
        which = quants.GGMLQuantizationType(self.kind)
        # Scales that are Inf or NaN are for the caller to refuse, who knows the name.
        with np.errstate(all="ignore"):
            for begin in range(0, len(stored), _AT_ONCE):
                part = stored[begin : begin + _AT_ONCE]
                made = quants.dequantize(part.reshape(1, -1), which)
                values[begin : begin + _AT_ONCE] = made.reshape(-1, kind.values)
        return values.reshape(self.shape)


def _package(file: Path) -> Any:
    try:
        from gguf import quants
    except ImportError as error:
        raise ConversionError(
            f"{file}: quantized GGUF tensors need the gguf package: pip install "
            "'sixbit-jax[gguf]'"
        ) from error
    return quants


def read_index(file: Path) -> dict[str, TensorInfo]:
    """Reads the header of a GGUF file: tensors by name, in the order of the file.

    Shapes are those of PyTorch (the last axis last), and the original ones where the
    file notes them.

    Raises:
      ConversionError: if the header is damaged, the file is truncated, of another
        architecture or version, a part of several, or has types that are not read.
    """
    try:
        with open_regular(file) as stream:
            return _Header(file, stream).tensors()
    except struct.error as error:
        raise ConversionError(
            f"{file}: expected a GGUF header, found the end of the file in it"
        ) from error
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{file}: {error}") from error


class _Header:
    """Reads a header from the beginning of a stream."""

    def __init__(self, file: Path, stream: BinaryIO):
        self.file, self._stream = file, stream
        self.size = os.fstat(stream.fileno()).st_size

    def _refuse(self, message: str) -> ConversionError:
        return ConversionError(f"{self.file}: {message}")

    def _take(self, count: int) -> bytes:
        data = self._stream.read(count) if count <= self.size else b""
        if len(data) != count:
            raise struct.error
        return data

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _text(self, longest: int) -> str:
        length = self._number("Q")
        if length > longest:
            raise self._refuse(
                f"expected texts of at most {longest:,} bytes in the header, found "
                f"one of {length:,}: damaged"
            )
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._refuse("expected UTF-8 in the header, found other bytes") from (
                error
            )

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text(_LONGEST_TEXT)
        if kind != _ARRAY:
            raise self._refuse(f"expected a type of GGUF's notes, found {kind}")
        inner, count = self._number("I"), self._number("Q")
        if count > _MOST_VALUES:
            raise self._refuse(f"expected arrays in reason, found {count:,} values")
        if inner in _NUMBERS:
            form = _NUMBERS[inner]
            data = self._take(count * struct.calcsize(f"<{form}"))
            return struct.unpack(f"<{count}{form}", data)
        if inner != _TEXT:
            raise self._refuse(f"expected an array of texts or numbers, found {inner}")
        for _ in range(count):
            self._text(_LONGEST_TEXT)
        return None

    def tensors(self) -> dict[str, TensorInfo]:
        """The whole header."""
        if (magic := self._take(4)) != b"GGUF":
            raise self._refuse(f"expected a GGUF file, found one of {brief(magic)}")
        version = self._number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            said = "big-endian file" if swapped else f"version {version}"
            raise self._refuse(f"expected GGUF version 2 or 3, found a {said}")
        count, notes = self._number("Q"), self._number("Q")
        if count > _MOST or notes > _MOST:
            raise self._refuse(
                f"expected at most {_MOST:,} tensors and notes, found {count:,} and "
                f"{notes:,}: damaged"
            )
        kept = self._notes(notes)
        self._check_notes(kept)
        entries = [self._entry() for _ in range(count)]
        alignment = kept.get("general.alignment", 32)
        begin = -(-self._stream.tell() // alignment) * alignment
        return self._placed(entries, begin, alignment, kept)

    def _notes(self, count: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for _ in range(count):
            name = self._text(_LONGEST_NAME)
            value = self._value(self._number("I"))
            if name.startswith(_KEPT):
                if name in kept:
                    raise self._refuse(f"expected {named(name)} once, found it twice")
                kept[name] = value
        return kept

    def _check_notes(self, kept: Mapping[str, Any]) -> None:
        alignment = kept.get("general.alignment", 32)
        power = isinstance(alignment, int) and 0 < alignment <= 2**20
        if not power or alignment & (alignment - 1):
            raise self._refuse(
                f"general.alignment: expected a power of two, found {brief(alignment)}"
            )
        architecture = kept.get("general.architecture")
        if architecture not in (None, *ARCHITECTURES):
            raise self._refuse(
                f"general.architecture: expected {', '.join(ARCHITECTURES)}, found "
                f"{brief(architecture)}: a sound file of another network"
            )
        parts = kept.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise self._refuse(
                f"expected a whole file, found one of {parts} parts (split.count); "
                "join them first (llama-gguf-split --merge)"
            )

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(_LONGEST_NAME)
        axes = self._number("I")
        if axes > _MOST_AXES:
            raise self._refuse(
                f"{named(name)}: expected at most {_MOST_AXES} axes, found {axes}"
            )
        shape = tuple(self._number("Q") for _ in range(axes))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _placed(
        self,
        entries: list[tuple[str, tuple[int, ...], int, int]],
        begin: int,
        alignment: int,
        kept: Mapping[str, Any],
    ) -> dict[str, TensorInfo]:
        """The tensors, once their places and types are known to fit the file."""
        found: dict[str, TensorInfo] = {}
        spans, problems, others = [], [], {}
        for name, shape, kind, offset in entries:
            blocks = _QUANTIZED.get(kind)
            size = _nbytes(shape, kind)
            if kind not in _PLAIN and blocks is None:
                others[_OTHERS.get(kind, f"number {kind}")] = name
            elif size is None:
                problems.append(
                    f"{named(name)}: expected rows of whole blocks, found {shape}"
                )
            elif name in found:
                problems.append(f"{named(name)}: expected it once, found it twice")
            elif offset % alignment or begin + offset + size > self.size:
                problems.append(
                    f"{named(name)}: expected {size:,} bytes at a multiple of "
                    f"{alignment} in {self.size:,}, found an offset of {offset:,}"
                )
            else:
                original = kept.get(_SHAPE + name, shape)
                if not _same_size(original, shape):
                    problems.append(
                        f"{named(name)}: {_SHAPE}: expected the sizes of "
                        f"{math.prod(shape):,} values, found {brief(original)}"
                    )
                    continue
                spans.append((offset, offset + size, name))
                place = (tuple(original), self.file, begin + offset)
                if blocks is None:
                    found[name] = TensorInfo(_PLAIN[kind], *place)
                else:
                    found[name] = GGUFInfo(np.dtype(np.float32), *place, kind=kind)
        if others:
            said = ", ".join(f"{t} ({named(n)})" for t, n in sorted(others.items())[:8])
            known = ", ".join(blocks.name for blocks in _QUANTIZED.values())
            raise self._refuse(
                f"expected floating-point tensors, {known}; found {said}, which are "
                "not read; the file is not damaged"
            )
        spans.sort()
        problems += [
            f"{named(b[2])}: expected its own bytes, found those of {named(a[2])}"
            for a, b in itertools.pairwise(spans)
            if b[0] < a[1]
        ]
        if problems:
            raise self._refuse(
                "\n  ".join(
                    ["bad GGUF header, or a truncated file:", *several(problems)]
                )
            )
        return _with_five_axes(found)


def _nbytes(shape: tuple[int, ...], kind: int) -> int | None:
    """Bytes of a tensor; None where its rows are no whole blocks, or empty."""
    size = math.prod(shape)
    if size < 1:
        return None
    if kind in _PLAIN:
        return size * _PLAIN[kind].itemsize
    blocks = _QUANTIZED.get(kind)
    if blocks is None or not shape or shape[-1] % blocks.values:
        return None
    return size // blocks.values * blocks.nbytes


def _same_size(original: Any, shape: tuple[int, ...]) -> bool:
    whole = isinstance(original, tuple) and len(original) <= _MOST_AXES
    whole = whole and all(type(n) is int and n > 0 for n in original)
    return whole and math.prod(original) == math.prod(shape)


def _with_five_axes(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """ggml has four axes: convolutions then have the first two of theirs in one."""
    for name, info in tensors.items():
        bias = tensors.get(f"{name.removesuffix('weight')}bias")
        if not name.endswith(_PATCHES) or len(info.shape) != 4:
            continue
        if bias is None or len(bias.shape) != 1 or info.shape[0] % bias.shape[0]:
            continue
        rows = bias.shape[0]
        shape = (rows, info.shape[0] // rows, *info.shape[1:])
        tensors[name] = replace(info, shape=shape)
    return tensors


__all__ = ["ARCHITECTURES", "SUFFIX", "GGUFInfo", "read_index"]
