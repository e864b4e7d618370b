"""Other programs' reading of the same files, for those that are valid and different."""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from convert.safetensors_file import DTYPES
from convert.torch_file import _DTYPES, _STORAGES

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def safetensors_tensors(file: Path) -> Tensors:
    """As the safetensors package reads them."""
    return {
        name: (
            DTYPES[entry["dtype"]].name,
            tuple(entry["shape"]),
            bytes(entry["data"]),
        )
        for name, entry in safetensors.deserialize(file.read_bytes())
    }


class _Unpickler(pickle._Unpickler):
    """Python's own machine, with arrays for tensors."""

    def __init__(self, code: bytes, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(code))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if name == "OrderedDict":
            return OrderedDict
        if name.startswith("_rebuild_tensor"):
            return _rebuild
        if name == "_rebuild_parameter":
            return lambda data, *_: data
        if name == "Size":
            return tuple
        return _STORAGES.get(name, _DTYPES.get(name, np.dtype(np.uint8)))

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, elements = pid
        data = self._archive.read(f"{self._root}data/{key}")
        array = np.frombuffer(data, dtype)
        assert array.size == elements
        return array


def _rebuild(
    storage: np.ndarray, first: int, shape: tuple, strides: tuple, *rest: Any
) -> np.ndarray:
    if len(rest) > 2 and isinstance(rest[2], np.dtype):
        storage = storage.view(rest[2])
    # Bytes without a meaning: `as_strided` does not know all of ml_dtypes.
    plain = storage[first:].view(f"V{storage.itemsize}")
    steps = [stride * storage.itemsize for stride in strides]
    found = np.ascontiguousarray(np.lib.stride_tricks.as_strided(plain, shape, steps))
    return found.view(storage.dtype).reshape(shape)


def torch_tensors(file: Path) -> Tensors:
    """As Python's pickle and zipfile read them."""
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        root = name.removesuffix("data.pkl")
        found = _Unpickler(archive.read(name), archive, root).load()
        return {
            key: (value.dtype.name, value.shape, value.tobytes())
            for key, value in found.items()
            if isinstance(value, np.ndarray)
        }


def json_values(file: Path) -> dict[str, Any]:
    """As Python reads them, with what it takes and JSON does not have."""
    return json.loads(file.read_bytes())
