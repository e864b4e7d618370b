"""The safetensors format: reading one tensor at a time, writing in one pass.

The `safetensors` package maps files into memory, whose pages count as resident, and its
NumPy side lacks bfloat16 and float8. This reads with plain `read` calls and keeps one
tensor.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from sixbit_jax.reading.json_file import parse_json_object
from sixbit_jax.reading.messages import brief, named, several
from sixbit_jax.reading.regular_file import open_regular

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Names of the format that NumPy has no arithmetic for, or nothing here a use.
_UNSUPPORTED = frozenset(
    ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")
)
_WRITERS = {
    "F8_E8M0": "MXFP8 or MXFP4 (scales per 32 values)",
    "F4": "MXFP4 or NVFP4",
    "F6_E2M3": "MXFP6",
    "F6_E3M2": "MXFP6",
    "F8_E4M3FNUZ": "float8 of AMD",
    "F8_E5M2FNUZ": "float8 of AMD",
}
_FIELDS = frozenset(("dtype", "shape", "data_offsets"))
# The reference implementation takes 100 MB, which need 3 GB of memory to parse. The
# header of a thousand tensors has 0.1 MB.
_LARGEST_HEADER = 25_000_000
# NumPy's and torch's.
_MOST_AXES = 64


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file.

    Attributes:
      dtype: its NumPy dtype.
      shape: its shape.
      file: the file that holds it.
      offset: first byte, counted from the beginning of the file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """For reports."""
        return self.dtype.name

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a floating one, those of ml_dtypes included."""
        return _NAMES[self.dtype].startswith(("F", "BF"))

    def read(self) -> np.ndarray:
        """Reads the tensor.

        Raises:
          ConversionError: if the file ends before the tensor does.
        """
        buffer = np.empty(self.nbytes, np.uint8)
        self._fill(memoryview(buffer))
        return buffer.view(self.dtype).reshape(self.shape)

    def _fill(self, view: memoryview) -> None:
        try:
            stream = open_regular(self.file, buffering=0)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        with stream:
            stream.seek(self.offset)
            done = 0
            while done < self.nbytes:
                count = stream.readinto(view[done:])  # pyrefly: ignore
                if not count:
                    raise ConversionError(
                        f"{self.file}: expected {self.nbytes:,} bytes at "
                        f"{self.offset:,}, found the end of the file after {done:,}"
                    )
                done += count


def read_metadata(file: Path) -> dict[str, str]:
    """The `__metadata__` of a file, texts by name; empty where there is none.

    Raises:
      ConversionError: as `read_index`.
    """
    metadata = _read_header(file)[0].get("__metadata__", {})
    problems = _metadata_problems(metadata)
    if problems:
        raise ConversionError(f"{file}: bad safetensors header: {problems[0]}")
    return metadata


def _read_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header's entries, where the tensors begin, and the bytes of the file."""
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            _check_length(file, length, size)
            text = stream.read(length)
        if not text.startswith(b"{"):
            raise ValueError(
                f"{file}: expected a JSON object as safetensors header, found "
                f"{brief(text[:16])}: another format, or damaged"
            )
        entries = parse_json_object(text, f"{file}: safetensors header")
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(str(error)) from error
    return entries, 8 + length, size


def read_index(file: Path) -> dict[str, TensorInfo]:
    """Reads a safetensors header: tensors by name, in the order of the file.

    Raises:
      ConversionError: if the header is damaged or larger than 25 MB, byte ranges do
        not fit shapes, leave holes or overlap, or the file is truncated.
    """
    entries, data, size = _read_header(file)
    _refuse_dtypes(file, entries)
    problems = _metadata_problems(entries.pop("__metadata__", {}))
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        problem = _entry_problem(entry)
        if problem is not None:
            problems.append(f"{named(name)}: {problem}")
            continue
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        tensors[name] = TensorInfo(dtype, shape, file, data + begin)
        spans.append((begin, end, name))
    if not problems:
        problems = _gaps(spans, size - data)
    if problems:
        raise ConversionError(
            "\n  ".join([f"{file}: bad safetensors header:", *several(problems)])
        )
    return tensors


def _refuse_dtypes(file: Path, entries: Mapping[str, Any]) -> None:
    """Refuses dtypes that the format has and nothing here reads, by their names.

    Raises:
      ConversionError: there is one; names the quantization that writes it, if known.
    """
    for name, entry in entries.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(dtype, str) and dtype in _UNSUPPORTED:
            kind = _WRITERS.get(dtype)
            raise ConversionError(
                f"{file}: expected tensors of {', '.join(DTYPES)}, found unsupported "
                f"dtype {dtype}{f' of {kind}' if kind else ''} ({named(name)}); the "
                "file is not damaged; use the network's unquantized weights"
            )


def _check_length(file: Path, length: int, size: int) -> None:
    if size < 8 or length > size - 8:
        raise ConversionError(
            f"{file}: expected a safetensors header within {size:,} bytes, found a "
            f"header length of {length:,}: truncated, or not safetensors"
        )
    if length > _LARGEST_HEADER:
        raise ConversionError(
            f"{file}: expected a safetensors header of at most {_LARGEST_HEADER:,} "
            f"bytes (100,000 tensors), found one of {length:,}"
        )


def _metadata_problems(metadata: Any) -> list[str]:
    fits = isinstance(metadata, dict) and all(
        isinstance(value, str) for value in metadata.values()
    )
    if fits:
        return []
    return [f"__metadata__: expected texts by name, found {brief(metadata)}"]


def _whole_numbers(values: Any, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _entry_problem(entry: Any) -> str | None:
    """What is wrong with the description of a tensor."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        return f"expected {', '.join(sorted(_FIELDS))}, found {brief(entry)}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"expected dtype to be one of {', '.join(DTYPES)}, found {brief(dtype)}"
    if not _whole_numbers(shape, _MOST_AXES):
        return f"expected a shape of whole numbers from 0, found {brief(shape)}"
    if not _whole_numbers(offsets, 2) or len(offsets) != 2:
        return f"expected data_offsets of two whole numbers, found {brief(offsets)}"
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    # Also where an axis is 0, NumPy wants to be able to count the others.
    counted = math.prod(n for n in shape if n) * DTYPES[dtype].itemsize
    if end - begin != nbytes or counted >= 2**63:
        return (
            f"expected {brief(nbytes)} bytes for {dtype} {brief(shape)}, found the "
            f"range {begin:,} to {end:,}"
        )
    return None


def _gaps(spans: list[tuple[int, int, str]], available: int) -> list[str]:
    problems = []
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            problems.append(
                f"{named(name)}: expected to begin at byte {position:,}, found "
                f"{begin:,}"
            )
        position = end
    if position != available:
        kind = "truncated" if available < position else "too long"
        problems.append(
            f"expected {position:,} bytes of tensors, found {available:,}: the file is "
            f"{kind}"
        )
    return problems


def header_bytes(
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The beginning of a safetensors file that holds `tensors` in this order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, in the order announced.

    Args:
      file: the file to make.
      tensors: dtype and shape by name.
      metadata: the header's `__metadata__`; diffusers wants `{"format": "pt"}`.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ):
        self._expected: Iterator = iter(tensors.items())
        self._file = Path(file)
        self._stream: BinaryIO = open(file, "wb")  # noqa: SIM115 (closed by `close`)
        self._stream.write(header_bytes(tensors, metadata))

    def write(self, name: str, array: np.ndarray) -> None:
        """Appends one tensor.

        Raises:
          ConversionError: if it is not the next one announced.
        """
        expected, (dtype, shape) = next(self._expected, ("nothing", (None, ())))
        if (name, array.dtype, array.shape) != (expected, dtype, tuple(shape)):
            raise ConversionError(
                f"{self._file}: expected {expected} {dtype} {list(shape)} next, found "
                f"{name} {array.dtype} {list(array.shape)}"
            )
        self._stream.write(
            memoryview(np.ascontiguousarray(array).reshape(-1).view("u1"))
        )

    def close(self) -> None:
        """Completes the file.

        Raises:
          ConversionError: if announced tensors were not written.
        """
        self._stream.close()
        left = [name for name, _ in self._expected]
        if left:
            raise ConversionError(f"{self._file}: never written: {', '.join(left)}")

    def abort(self) -> None:
        """Closes an incomplete file."""
        self._stream.close()


def write_file(
    file: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays that are in memory as one safetensors file."""
    tensors = {name: (a.dtype, a.shape) for name, a in arrays.items()}
    writer = SafetensorsWriter(file, tensors, metadata)
    try:
        for name, array in arrays.items():
            writer.write(name, array)
    except BaseException:
        writer.abort()
        raise
    writer.close()
