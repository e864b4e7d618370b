"""Files as `torch.save` writes them, made with NumPy and `pickle` alone."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global:
    """A name that the pickle holds in place of an object."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self) -> None:
        """`pickle` writes functions only for what it can call."""


class Call:
    """Pickles as a call of a name."""

    def __init__(self, function: Global, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Storage:
    """Bytes of the archive that tensors refer to."""

    def __init__(self, array: np.ndarray, key: str, untyped: bool = False):
        self.array, self.key = np.asarray(array, order="C"), key
        self.untyped = untyped


def tensor(
    storage: Storage, first: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Call:
    """A view of a storage, as torch pickles it."""
    hooks = Call(Global("collections", "OrderedDict"))
    common = (storage, first, shape, strides, False, hooks)
    if storage.untyped:
        dtype = Global("torch", storage.array.dtype.name)
        rebuild = Global("torch._utils", "_rebuild_tensor_v3")
        return Call(rebuild, *common, dtype)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), *common)


def whole(array: np.ndarray, key: str) -> Call:
    """A tensor with a storage of its own."""
    untyped = array.dtype.name not in _CLASSES
    strides = tuple(s // array.itemsize for s in np.asarray(array, order="C").strides)
    return tensor(Storage(array, key, untyped), 0, array.shape, strides)


class _Pickler(pickle._Pickler):
    def __init__(self, stream: Any):
        super().__init__(stream, protocol=2)
        self.storages: dict[str, Storage] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        if obj.untyped:
            kind, size = Global("torch.storage", "UntypedStorage"), obj.array.nbytes
        else:
            kind = Global("torch", _CLASSES[obj.array.dtype.name])
            size = obj.array.size
        return ("storage", kind, obj.key, "cpu", size)

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
            return None
        return super().save(obj, save_persistent_id)


def write_torch_file(file: Path, content: Any, *, root: str = "archive") -> Path:
    """Writes any structure of dicts, lists, numbers, `Call`s and tensors."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{root}/data.pkl", stream.getvalue())
        archive.writestr(f"{root}/byteorder", "little")
        for key, storage in pickler.storages.items():
            archive.writestr(f"{root}/data/{key}", storage.array.tobytes())
        archive.writestr(f"{root}/version", "3\n")
    return file


def write_state_dict(file: Path, weights: Mapping[str, np.ndarray]) -> Path:
    """What `torch.save(model.state_dict(), file)` writes."""
    content = {
        name: whole(array, str(i)) for i, (name, array) in enumerate(weights.items())
    }
    return write_torch_file(file, content)
