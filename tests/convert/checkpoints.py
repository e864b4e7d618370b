"""Small diffusers checkpoints, written with NumPy alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from convert.safetensors_file import write_file
from convert.tables import table_for
from sixbit_jax import checkpoint
from sixbit_jax.formats import StoredWeight
from tests.golden.cases import GoldenCase, load

NAME = "diffusion_pytorch_model"
SCHEDULER = {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 1.0}


def golden(name: str = "5b_f1_12x8_t7") -> GoldenCase:
    """A golden case; the default one is the smallest with rotary positions."""
    return load(name)


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    *,
    shards: int = 0,
) -> Path:
    """Writes what diffusers' `save_pretrained` writes: one file or several."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(dict(config)))
    if not shards:
        write_file(directory / f"{NAME}.safetensors", weights, {"format": "pt"})
        return directory
    weight_map = {}
    for number, keys in enumerate(np.array_split(np.array(sorted(weights)), shards), 1):
        name = f"{NAME}-{number:05}-of-{shards:05}.safetensors"
        part = {str(key): weights[str(key)] for key in keys}
        write_file(directory / name, part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{NAME}.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_golden(
    directory: Path,
    case: GoldenCase,
    *,
    dtype: Any = np.float32,
    shards: int = 0,
    edit: Any = None,
) -> Path:
    """Writes the weights of a golden case; `edit` may change the dictionary first."""
    weights = {key: value.astype(dtype) for key, value in case.weights().items()}
    if edit is not None:
        edit(weights)
    return write_checkpoint(directory, case.config, weights, shards=shards)


def converted(directory: Path) -> dict[str, np.ndarray]:
    """The values of a converted network by the checkpoint's keys; not rotated ones."""
    model, header = checkpoint.load(directory)
    table = table_for(header.config)
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        name, value = ".".join(map(str, path)), variable.get_value()
        if isinstance(value, StoredWeight):
            assert not value.rotation
            value = value.dequantize()
        value = np.asarray(value)
        stack, _, leaf = name.partition(".")
        if stack in table.stacks:
            for layer, part in enumerate(value):
                found[table.source_of(f"{stack}.{layer}.{leaf}")[0]] = part
        else:
            found[table.source_of(name)[0]] = value
    return found
