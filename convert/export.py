"""A checkpoint directory of ours -> safetensors that diffusers loads, streaming."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from convert.choices import DTYPES, WRITTEN
from convert.errors import ConversionError
from convert.rules import collapse
from convert.safetensors_file import SafetensorsWriter
from convert.tables import table_for
from convert.values import cast
from sixbit_jax.checkpoint import (
    CheckpointError,
    CheckpointReader,
    Header,
    ParameterSpec,
    new_directory,
    value_of,
)
from sixbit_jax.formats import CorrectedArray, rotate

_NAME = "diffusion_pytorch_model"
MAX_SHARD_BYTES = 5_000_000_000
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class _Tensor:
    key: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def to_diffusers(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dialect: str | None = None,
) -> Path:
    """Writes a checkpoint directory back as diffusers' `save_pretrained` would.

    NVFP4 weights are written as the values that they stand for, rotated back, or packed
    as NVIDIA's ModelOpt (and torchao) does: `X.weight` uint8 [N, K/2], `X.weight_scale`
    float8_e4m3fn [N, K/16], `X.weight_scale_2` float32, and `quantization_config` in
    config.json. No `input_scale`: our activations are quantized as they come.

    Args:
      source: directory that `convert` or `sixbit_jax.checkpoint.save` made.
      destination: the directory to make: config.json, safetensors (with an index if
        there is more than one shard), and scheduler/ where the source has one.
      dtype: of all tensors; "keep" keeps the stored dtypes and writes NVFP4 weights
        as bfloat16.
      max_shard_bytes: a shard that would exceed this is followed by another.
      dialect: "modelopt" to write NVFP4 weights packed; None for their values.

    Returns:
      The destination.

    Raises:
      CheckpointError: if the source is damaged, or the destination exists or cannot be
        written; nothing is left behind.
      ConversionError: for a network without a rule table; with a dialect, for weights
        that are rotated, of another format, or none packed.
      ValueError: for another dtype or dialect.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {DTYPES}, found {dtype!r}")
    if max_shard_bytes < 1:
        raise ValueError(
            f"max_shard_bytes: expected at least 1, found {max_shard_bytes}"
        )
    if dialect is not None and dialect not in WRITTEN:
        raise ValueError(f"dialect: expected one of {WRITTEN}, found {dialect!r}")
    with CheckpointReader(Path(source)) as reader:
        header = reader.header
        table = table_for({"_class_name": header.model_class})
        if dialect is not None:
            _check_packable(header, table)
        tensors = _tensors(header, table, dtype, packed=dialect is not None)
        shards = _shards(tensors, max_shard_bytes)
        total = sum(tensor.nbytes for tensor in tensors)
        try:
            with new_directory(destination, expected_bytes=total) as temporary:
                quantization = None
                if dialect is not None:
                    quantization = _quantization_config(tensors)
                _write_configs(temporary, header, quantization)
                _write_index(temporary, shards, total)
                _write_shards(temporary, shards, reader, table, dialect is not None)
        except OSError as error:
            raise CheckpointError(f"{destination}: writing: {error}") from error
    return Path(destination)


def _stored_dtype(spec: ParameterSpec, dtype: str) -> np.dtype:
    if dtype != "keep":
        return jnp.dtype(dtype)
    return jnp.dtype("bfloat16" if spec.compressed else spec.dtype)


def _check_packable(header: Header, table: Any) -> None:
    """Refuses what the dialect has no words for."""
    problems, packed = [], 0
    for item in header.items():
        for name, spec in item.parameters.items():
            if not spec.compressed:
                continue
            packed += 1
            key, _ = table.source_of(item.path(name))
            if spec.dtype != "nvfp4":
                problems.append(f"{key}: {spec.dtype}")
            elif spec.rotation:
                problems.append(f"{key}: rotated by {spec.rotation}")
    if not packed:
        raise ConversionError("packed weights: expected NVFP4 weights, found none")
    if problems:
        raise ConversionError(
            "\n  ".join(
                [
                    "packed weights: expected NVFP4 without rotation (other programs "
                    "do not rotate activations; convert with --rotation 0), found",
                    *collapse(problems),
                ]
            )
        )


def _quantization_config(tensors: list[_Tensor]) -> dict[str, Any]:
    """What ModelOpt writes into config.json."""
    stems = [
        t.key.removesuffix(".weight") for t in tensors if t.key.endswith(".weight")
    ]
    packed = {t.key.removesuffix(".weight_scale_2") for t in tensors}
    kept = sorted(stem for stem in stems if stem not in packed)
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": kept,
        "exclude_modules": kept,
        "producer": {"name": "sixbit-jax"},
    }


def _parts(key: str, shape: tuple[int, ...]) -> list[_Tensor]:
    """The tensors of a packed weight."""
    rows, columns = shape
    return [
        _Tensor(key, np.dtype(np.uint8), (rows, columns // 2)),
        _Tensor(f"{key}_scale", _E4M3, (rows, columns // 16)),
        _Tensor(f"{key}_scale_2", np.dtype(np.float32), ()),
    ]


def _tensors(
    header: Header, table: Any, dtype: str, *, packed: bool = False
) -> list[_Tensor]:
    tensors = []
    for item in header.items():
        for name, spec in item.parameters.items():
            key, rule = table.source_of(item.path(name))
            if packed and spec.compressed:
                tensors += _parts(key, spec.shape)
                continue
            shape = rule.transform.source_shape(spec.shape)
            tensors.append(_Tensor(key, _stored_dtype(spec, dtype), shape))
    return tensors


def _shards(tensors: list[_Tensor], limit: int) -> list[tuple[str, list[_Tensor]]]:
    parts: list[list[_Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        if parts[-1] and tensor.nbytes > room:
            parts.append([])
            room = limit
        parts[-1].append(tensor)
        room -= tensor.nbytes
    if len(parts) == 1:
        return [(f"{_NAME}.safetensors", parts[0])]
    return [
        (f"{_NAME}-{number:05}-of-{len(parts):05}.safetensors", part)
        for number, part in enumerate(parts, 1)
    ]


def _write_configs(
    directory: Path, header: Header, quantization: dict[str, Any] | None
) -> None:
    config = dict(header.config) | {"_class_name": header.model_class}
    # That of a packed source is about its own files.
    config.pop("quantization_config", None)
    if quantization is not None:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if header.scheduler is not None:
        (directory / "scheduler").mkdir()
        text = json.dumps(dict(header.scheduler), indent=2) + "\n"
        (directory / "scheduler" / "scheduler_config.json").write_text(text)


def _write_index(
    directory: Path, shards: list[tuple[str, list[_Tensor]]], total: int
) -> None:
    if len(shards) == 1:
        return
    weight_map = {tensor.key: name for name, part in shards for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (directory / f"{_NAME}.safetensors.index.json").write_text(text)


def _write_shards(
    directory: Path,
    shards: list[tuple[str, list[_Tensor]]],
    reader: CheckpointReader,
    table: Any,
    packed: bool,
) -> None:
    arrays = _arrays(reader, table, packed)
    for name, part in shards:
        layout = {tensor.key: (tensor.dtype, tensor.shape) for tensor in part}
        writer = SafetensorsWriter(directory / name, layout, {"format": "pt"})
        try:
            for tensor in part:
                key, array = next(arrays)
                writer.write(key, cast(array, tensor.dtype.name, key))
        except BaseException:
            writer.abort()
            raise
        writer.close()


def _arrays(reader: CheckpointReader, table: Any, packed: bool) -> Any:
    for item in reader.header.items():
        stored = reader.read(item)
        for name, spec in item.parameters.items():
            key, rule = table.source_of(item.path(name))
            array = value_of(stored[name], spec)
            if spec.compressed and packed:
                yield key, np.asarray(array.codes)
                yield f"{key}_scale", np.asarray(array.block_scales)
                yield f"{key}_scale_2", np.asarray(array.tensor_scale)
                continue
            if spec.compressed:
                array = np.asarray(_dequantize(_foldable(array, key)))
            yield key, rule.transform.backward(array)


@jax.jit
def _dequantize(quantized: Any) -> jax.Array:
    """float32 values in the basis of the original network: W = (W H) H."""
    matrix = rotate(quantized.dequantize(jnp.float32), quantized.rotation)
    if isinstance(quantized, CorrectedArray):
        up = quantized.up * quantized.factors
        matrix += jnp.matmul(up, quantized.down, precision="highest")
    return matrix


def _foldable(quantized: Any, key: str) -> Any:
    """The weight, if all of it is one matrix.

    Raises:
      ConversionError: a correction has a factor for each frame.
    """
    if isinstance(quantized, CorrectedArray) and quantized.factors.shape[-1] != 1:
        raise ConversionError(
            f"{key}: expected a weight that is one matrix, found a correction with "
            f"{quantized.factors.shape[-1]} factors for frames, which diffusers has not"
        )
    return quantized
