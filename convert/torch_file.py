"""Zip files of `torch.save` (.pt, .pth, .bin), read without torch and without trust.

Such a file holds a pickle, which may name any function of any module to be called when
it is read. Here a name stands for one of the few things that a state dict needs, all of
them defined in this module; every other name is refused, and nothing is imported or
run. The tensors' bytes lie uncompressed in the archive and are read one at a time.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo

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
# Where training programs put the state dict among other things.
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "generator")
# A state dict of a thousand tensors has 0.2 MB.
_LARGEST_PICKLE = 64 * 2**20
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What `pickle` raises for bytes that are no pickle, and our constructors for arguments
# that do not fit them.
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class StridedInfo(TensorInfo):
    """A tensor whose elements do not lie one after the other.

    Attributes:
      strides: in elements, per axis.
    """

    strides: tuple[int, ...] = ()

    def read(self) -> np.ndarray:
        """Reads the part of the storage that the tensor spans, and copies it out.

        Raises:
          ConversionError: if the file ends before the tensor does.
        """
        length = _span(self.shape, self.strides)
        flat = TensorInfo(self.dtype, (length,), self.file, self.offset).read()
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


class _Refused(Exception):
    """A name in the pickle that is not one of those that tensors need."""


class _StateDict(dict):
    """An OrderedDict; the attributes that torch gives it (`_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _Function:
    """One of the functions that a pickle may call, and cannot change (opcode BUILD)."""

    __slots__ = ("_run",)
    _run: Callable[..., Any]

    def __init__(self, run: Callable[..., Any]):
        object.__setattr__(self, "_run", run)

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _Refused(f"setting {name} of a function")


# Tuples: a pickle cannot change these either.
class _DType(NamedTuple):
    value: np.dtype | None


class _Storage(NamedTuple):
    """Bytes of an archive's entry; dtype None where the tensor names it."""

    dtype: np.dtype | None
    offset: int
    nbytes: int


class _Tensor(NamedTuple):
    info: TensorInfo


class _Unpickler(pickle._Unpickler):
    """Builds state dicts of `_Tensor`; see the module for what it refuses.

    The one in Python: that in C allocates its memo by the largest number that a file
    claims to use.
    """

    def __init__(self, stream: Any, file: Path, entries: Mapping[str, tuple[int, int]]):
        super().__init__(stream)
        self._file, self._entries = file, entries
        rebuild = _Function(self._rebuild)
        self._known: dict[str, Any] = {
            "collections.OrderedDict": _Function(_StateDict),
            "torch.Size": _Function(tuple),
            "torch._utils._rebuild_tensor": rebuild,
            "torch._utils._rebuild_tensor_v2": rebuild,
            "torch._utils._rebuild_tensor_v3": _Function(self._rebuild_as),
            "torch._utils._rebuild_parameter": _Function(self._parameter),
            "torch.storage.UntypedStorage": _DType(None),
            **{f"torch.{name}": _DType(dtype) for name, dtype in _STORAGES.items()},
            **{f"torch.{name}": _DType(dtype) for name, dtype in _DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise _Refused(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that ("storage", type, key, device, elements) names."""
        kind, dtype, key, _, elements = pid
        if kind != "storage" or not isinstance(dtype, _DType):
            raise ValueError(f"persistent id {kind!r} of {dtype!r}")
        offset, nbytes = self._entries[key]
        size = 1 if dtype.value is None else dtype.value.itemsize
        if elements * size != nbytes:
            raise ValueError(
                f"storage {key}: expected {elements} elements of {size} bytes, found "
                f"{nbytes} bytes"
            )
        return _Storage(dtype.value, offset, nbytes)

    def _rebuild(
        self,
        storage: _Storage,
        first: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: Any,
    ) -> _Tensor:
        if storage.dtype is None:
            raise ValueError("a tensor of an untyped storage without a dtype")
        return self._tensor(storage, storage.dtype, first, shape, strides)

    def _rebuild_as(
        self,
        storage: _Storage,
        first: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        requires_grad: bool,
        hooks: Any,
        dtype: _DType,
        *_: Any,
    ) -> _Tensor:
        if dtype.value is None:
            raise ValueError("a tensor without a dtype")
        return self._tensor(storage, dtype.value, first, shape, strides)

    def _tensor(
        self,
        storage: _Storage,
        dtype: np.dtype,
        first: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> _Tensor:
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        if len(shape) != len(strides) or min((first, *shape, *strides)) < 0:
            raise ValueError(f"a tensor {shape} with strides {strides} from {first}")
        end = (first + _span(shape, strides)) * dtype.itemsize
        if end > storage.nbytes:
            raise ValueError(
                f"a tensor {shape} with strides {strides} from {first} needs {end:,} "
                f"bytes, its storage has {storage.nbytes:,}"
            )
        place = (dtype, shape, self._file, storage.offset + first * dtype.itemsize)
        if _contiguous(shape, strides):
            return _Tensor(TensorInfo(*place))
        return _Tensor(StridedInfo(*place, strides))

    @staticmethod
    def _parameter(data: _Tensor, *_: Any) -> _Tensor:
        return data


def read_index(file: Path) -> dict[str, TensorInfo]:
    """Reads which tensors a file holds, and where; no tensor is read yet.

    Args:
      file: made by `torch.save` of a state dict (torch 1.6 or later), or of a dict that
        has one under a usual name such as "state_dict".

    Returns:
      Tensors by name. Tensors that share a storage read the same bytes.

    Raises:
      ConversionError: if it is no such file, is damaged, or names anything that a
        state dict does not need; nothing named there is run.
    """
    with open(file, "rb") as stream:
        begin = stream.read(len(_BEFORE_ZIP))
        if begin == _BEFORE_ZIP:
            raise ConversionError(
                f"{file}: expected the zip format of torch.save, found the format "
                "before torch 1.6; load and save it with a current torch"
            )
        stream.seek(0)
        try:
            with zipfile.ZipFile(stream) as archive:
                found = _unpickle(file, stream, archive)
        except zipfile.BadZipFile as error:
            raise ConversionError(
                f"{file}: expected a zip file of torch.save, found {begin[:4]!r} "
                f"({error}): truncated, or another format"
            ) from error
    return _state_dict(file, found)


def _unpickle(file: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> Any:
    pickles = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(
            f"{file}: expected one data.pkl in the archive, found {len(pickles)}"
        )
    root = pickles[0].filename.removesuffix("data.pkl")
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ConversionError(
                f"{file}: expected entries stored as they are, found {info.filename} "
                "compressed or encrypted"
            )
    if pickles[0].file_size > _LARGEST_PICKLE:
        raise ConversionError(
            f"{file}: expected a data.pkl of tensors' names and places, found one of "
            f"{pickles[0].file_size:,} bytes"
        )
    names = archive.namelist()
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ConversionError(f"{file}: expected little-endian tensors, found others")
    prefix = f"{root}data/"
    entries = {
        info.filename.removeprefix(prefix): _place(file, stream, info)
        for info in archive.infolist()
        if info.filename.startswith(prefix)
    }
    with archive.open(pickles[0]) as content:
        try:
            return _Unpickler(content, file, entries).load()
        except _Refused as refused:
            raise ConversionError(
                f"{file}: expected a state dict, found {refused} in its pickle, which "
                "no tensor needs; it was not run"
            ) from refused
        except _DAMAGE as error:
            raise ConversionError(
                f"{file}: expected a pickled state dict, found {error!r}"
            ) from error


def _place(file: Path, stream: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an entry begin in the file, and how many there are."""
    before = stream.tell()
    # The local header repeats the name; its extra field aligns the data.
    stream.seek(info.header_offset)
    header = stream.read(30)
    stream.seek(before)
    if header[:4] != b"PK\x03\x04":
        raise ConversionError(f"{file}: no entry at {info.header_offset:,}: damaged")
    lengths = [int.from_bytes(header[i : i + 2], "little") for i in (26, 28)]
    return info.header_offset + 30 + sum(lengths), info.file_size


def _state_dict(file: Path, found: Any) -> dict[str, TensorInfo]:
    place = "the top level"
    if isinstance(found, dict) and not any(
        isinstance(v, _Tensor) for v in found.values()
    ):
        inside = [n for n in _WRAPPERS if isinstance(found.get(n), dict)]
        if len(inside) == 1:
            place = repr(inside[0])
            found = found[inside[0]]
    if not isinstance(found, dict):
        raise ConversionError(
            f"{file}: expected a dict of tensors, found a {type(found).__name__}"
        )
    tensors = {
        name: value.info
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, _Tensor)
    }
    if not tensors:
        names = ", ".join(map(repr, list(found)[:8]))
        raise ConversionError(
            f"{file}: expected tensors at {place} or in one of {', '.join(_WRAPPERS)}; "
            f"found no tensor among {names or 'nothing'}"
        )
    return tensors


__all__ = ["SUFFIXES", "StridedInfo", "read_index"]
