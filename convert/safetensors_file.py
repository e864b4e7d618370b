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
# The limit of the reference implementation; a larger number is a damaged file.
_LARGEST_HEADER = 100_000_000


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
        view = memoryview(buffer)
        with open(self.file, "rb", buffering=0) as stream:
            stream.seek(self.offset)
            done = 0
            while done < self.nbytes:
                count = stream.readinto(view[done:])
                if not count:
                    raise ConversionError(
                        f"{self.file}: expected {self.nbytes:,} bytes at "
                        f"{self.offset:,}, found the end of the file after {done:,}"
                    )
                done += count
        return buffer.view(self.dtype).reshape(self.shape)


def read_index(file: Path) -> dict[str, TensorInfo]:
    """Reads a safetensors header: tensors by name, in the order of the file.

    Raises:
      ConversionError: if the header is damaged, byte ranges do not fit shapes, leave
        holes or overlap, or the file is truncated.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_LARGEST_HEADER, size - 8):
            raise ConversionError(
                f"{file}: expected a safetensors header within {size:,} bytes, found a "
                f"header length of {length:,}: truncated, or not safetensors"
            )
        text = stream.read(length)
    try:
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__}")
    except ValueError as error:
        raise ConversionError(
            f"{file}: expected a JSON object as safetensors header, found {error}"
        ) from error
    entries.pop("__metadata__", None)
    data = 8 + length
    tensors: dict[str, TensorInfo] = {}
    problems: list[str] = []
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        try:
            dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
            begin, end = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            problems.append(
                f"{name}: expected dtype (one of {', '.join(DTYPES)}), shape and "
                f"data_offsets, found {entry!r} ({error!r})"
            )
            continue
        info = TensorInfo(dtype, shape, file, data + begin)
        if begin < 0 or min(shape, default=0) < 0 or end - begin != info.nbytes:
            problems.append(
                f"{name}: expected {info.nbytes:,} bytes for {entry['dtype']} "
                f"{list(shape)}, found the range {begin:,} to {end:,}"
            )
        tensors[name] = info
        spans.append((begin, end, name))
    if not problems:
        problems = _gaps(spans, size - data)
    if problems:
        raise ConversionError(
            "\n  ".join([f"{file}: bad safetensors header:", *problems])
        )
    return tensors


def _gaps(spans: list[tuple[int, int, str]], available: int) -> list[str]:
    problems = []
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            problems.append(
                f"{name}: expected to begin at byte {position:,}, found {begin:,}"
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
