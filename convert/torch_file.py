"""Zip files of `torch.save` (.pt, .pth, .bin), read without torch and without trust.

Such a file holds a pickle, which may name any function of any module to be called when
it is read. Here a name stands for one of the few things that a state dict needs, all of
them defined in this module; every other name is refused, and nothing is imported or
run. The tensors' bytes lie uncompressed in the archive, are read one at a time, and are
compared with their CRC-32 on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from convert.state_dicts import Chosen, choose
from convert.torch_pickle import (
    Call,
    Damaged,
    Dict,
    Dropped,
    Machine,
    Refused,
    Tuple,
    refuse,
)
from convert.zip_directory import Entry, read_directory
from sixbit_jax.reading.messages import brief, named
from sixbit_jax.reading.regular_file import open_regular

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# As `torch.float8_e4m3fn`; these have no storage class of their own.
_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
# A state dict of a thousand tensors has 0.2 MB.
_LARGEST_PICKLE = 16 * 2**20
_LARGEST_NOTE = 1024
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_KINDS: Mapping[type, str] = {Dropped: "list", Tuple: "tuple"}
# NumPy's and torch's.
_MOST_AXES = 64


@dataclass(frozen=True)
class StoredInfo(TensorInfo):
    """A tensor in an archive's entry, whose CRC-32 is checked when it is read.

    Attributes:
      entry: the storage that it is a part of.
    """

    entry: Entry | None = None

    def _fill(self, view: memoryview) -> None:
        assert self.entry is not None
        self.entry.read_into(view, self.offset - self.entry.offset)


@dataclass(frozen=True)
class StridedInfo(StoredInfo):
    """A tensor whose elements do not lie one after the other.

    Attributes:
      strides: in elements, per axis.
    """

    strides: tuple[int, ...] = ()

    def read(self) -> np.ndarray:
        """Reads the part of the storage that the tensor spans, and copies it out.

        Raises:
          ConversionError: if the file ends before the tensor does, or its bytes are
            not those that were written.
        """
        length = _span(self.shape, self.strides)
        flat = StoredInfo(
            self.dtype, (length,), self.file, self.offset, self.entry
        ).read()
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        return np.ascontiguousarray(view).reshape(self.shape)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _DType(NamedTuple):
    value: np.dtype | None


class _Storage(NamedTuple):
    """An archive's entry; dtype None where the tensor names it."""

    dtype: np.dtype | None
    entry: Entry


class _Tensor(NamedTuple):
    info: TensorInfo


def _names(largest: int) -> dict[str, Any]:
    """What the names in a pickle stand for; all others are refused.

    Args:
      largest: bytes of a tensor; those of the file.
    """
    rebuild = partial(_rebuild, largest)
    return {
        "collections.OrderedDict": Call(Dict, 0, 0),
        "torch.Size": Call(_size, 1, 1),
        "torch._utils._rebuild_tensor": Call(rebuild, 4, 4),
        "torch._utils._rebuild_tensor_v2": Call(rebuild, 6, 7),
        "torch._utils._rebuild_tensor_v3": Call(partial(_rebuild_as, largest), 7, 8),
        "torch._utils._rebuild_parameter": Call(_parameter, 2, 3),
        "torch.storage.UntypedStorage": _DType(None),
        **{f"torch.{name}": _DType(dtype) for name, dtype in _STORAGES.items()},
        **{f"torch.{name}": _DType(dtype) for name, dtype in _DTYPES.items()},
    }


def _size(sizes: Any) -> Any:
    return sizes if isinstance(sizes, Tuple) else refuse(f"a size of {brief(sizes)}")


def _parameter(data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        refuse(f"a parameter of {brief(data)}")
    return data


def _storage(entries: Mapping[str, Entry], identifier: Any) -> _Storage:
    """The storage that ("storage", type, key, device, elements) names."""
    if not isinstance(identifier, Tuple) or len(identifier) != 5:
        refuse(f"the persistent id {brief(identifier)}")
    kind, dtype, key, _, elements = identifier
    if kind != "storage" or not isinstance(dtype, _DType) or type(key) is not str:
        refuse(f"a persistent id of {brief(kind)}, {brief(key)}")
    if key not in entries:
        refuse(f"storage {brief(key)}, for which the archive has no entry")
    entry = entries[key]
    size = 1 if dtype.value is None else dtype.value.itemsize
    if type(elements) is not int or elements * size != entry.nbytes:
        refuse(
            f"storage {named(key)} of {brief(elements)} elements of {size} bytes, and "
            f"{entry.nbytes:,} bytes in the archive"
        )
    return _Storage(dtype.value, entry)


def _rebuild(largest: int, storage: Any, first: Any, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or storage.dtype is None:
        refuse("a tensor of no storage, or of an untyped one without a dtype")
    return _tensor(largest, storage.entry, storage.dtype, first, *rest[:2])


def _rebuild_as(largest: int, storage: Any, first: Any, *rest: Any) -> _Tensor:
    dtype = rest[4]
    if not isinstance(storage, _Storage) or not isinstance(dtype, _DType):
        refuse("a tensor without a storage or a dtype")
    if dtype.value is None:
        refuse("a tensor without a dtype")
    return _tensor(largest, storage.entry, dtype.value, first, *rest[:2])


def _tensor(
    largest: int, entry: Entry, dtype: np.dtype, first: Any, shape: Any, strides: Any
) -> _Tensor:
    for numbers in (shape, strides):
        if not isinstance(numbers, Tuple) or len(numbers) > _MOST_AXES:
            refuse(f"a tensor with the shape or strides {brief(numbers)}")
    shape, strides = tuple(shape), tuple(strides)
    words = f"a tensor {brief(shape)} with strides {brief(strides)} from {brief(first)}"
    numbers = (first, *shape, *strides)
    whole = all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    if not whole or len(shape) != len(strides):
        refuse(words)
    end = (first + _span(shape, strides)) * dtype.itemsize
    if end > entry.nbytes:
        refuse(f"{words} that needs {end:,} bytes, its storage has {entry.nbytes:,}")
    offset = entry.offset + first * dtype.itemsize
    if _contiguous(shape, strides):
        return _Tensor(StoredInfo(dtype, shape, entry.file, offset, entry))
    info = StridedInfo(dtype, shape, entry.file, offset, entry, strides)
    if info.nbytes > largest:
        refuse(f"{words}: {info.nbytes:,} bytes in a file of {largest:,}")
    return _Tensor(info)


def read_index(file: Path) -> dict[str, TensorInfo]:
    """The tensors of `read_chosen`, where there is one state dict."""
    return dict(read_chosen(file).tensors)


def read_chosen(file: Path, state_dict: str | None = None) -> Chosen:
    """Reads which tensors a file holds, and where; no tensor is read yet.

    Args:
      file: made by `torch.save` of a state dict (torch 1.6 or later), or of dicts that
        have one or several in them.
      state_dict: which one to take, as "ema" or "module.ema"; None: the only one.

    Returns:
      Tensors by name. Tensors that share a storage read the same bytes.

    Raises:
      ConversionError: if it is no such file, is damaged, or names anything that a
        state dict does not need; nothing named there is run.
    """
    try:
        with open_regular(file) as stream:
            begin = stream.read(len(_BEFORE_ZIP))
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if begin == _BEFORE_ZIP:
        raise ConversionError(
            f"{file}: expected the zip format of torch.save, found the format "
            "before torch 1.6; load and save it with a current torch"
        )
    found = _unpickle(file, read_directory(file))
    if not isinstance(found, dict):
        raise ConversionError(
            f"{file}: expected a dict of tensors, found a "
            f"{_KINDS.get(type(found), type(found).__name__)}"
        )
    return choose(found, _info_of, where=file, name=state_dict)


def _unpickle(file: Path, archive: Mapping[str, Entry]) -> Any:
    pickles = [name for name in archive if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(
            f"{file}: expected one data.pkl in the archive, found {len(pickles)}"
        )
    root = pickles[0].removesuffix("data.pkl")
    content = archive[pickles[0]]
    if content.nbytes > _LARGEST_PICKLE:
        raise ConversionError(
            f"{file}: expected a data.pkl of tensors' names and places, found one of "
            f"{content.nbytes:,} bytes"
        )
    prefix = f"{root}data/"
    for name, entry in archive.items():
        if not name.startswith(root):
            raise ConversionError(
                f"{file}: expected everything in {named(root)}, found {named(name)}"
            )
        if not name.startswith(prefix) and entry.nbytes <= _LARGEST_NOTE:
            # Versions and the like: not needed, but a changed bit is damage.
            entry.read()
    order = archive.get(f"{root}byteorder")
    if order is not None and (order.nbytes != 6 or order.read() != b"little"):
        raise ConversionError(f"{file}: expected little-endian tensors, found others")
    storages = {
        name.removeprefix(prefix): entry
        for name, entry in archive.items()
        if name.startswith(prefix)
    }
    code = content.read()
    largest = file.stat().st_size
    try:
        return Machine(code, _names(largest), partial(_storage, storages)).run()
    except Refused as refused:
        raise ConversionError(
            f"{file}: expected a state dict, found {refused} in its pickle, which "
            "no tensor needs; it was not run"
        ) from refused
    except Damaged as error:
        raise ConversionError(
            f"{file}: expected a pickled state dict, found {error}"
        ) from error


def _info_of(value: Any) -> TensorInfo | None:
    return value.info if isinstance(value, _Tensor) else None


__all__ = ["SUFFIXES", "StoredInfo", "StridedInfo", "read_chosen", "read_index"]
