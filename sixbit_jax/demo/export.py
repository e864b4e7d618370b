"""Writes the trained network as a diffusers checkpoint, in shards, and reads it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from sixbit_jax import checksums, files
from sixbit_jax.demo.model import (
    COGVIDEOX,
    DIFFUSERS_VERSION,
    DemoModel,
    parameter_name,
)

_WEIGHTS = "diffusion_pytorch_model"


def diffusers_tensors(
    params: nnx.State, demo: DemoModel = COGVIDEOX
) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters under their diffusers names, blocks unstacked, bfloat16.

    Args:
        params: state of a network with plain array weights.
        demo: which network.

    Yields:
        Name and array.

    Raises:
        ValueError: parameters that are not finite; lists all of them.
    """
    stem = demo.stem
    broken = []
    for path, variable in nnx.to_flat_state(params):
        name = parameter_name(path)
        array = np.asarray(variable.get_value(), np.float32)
        if not np.isfinite(array).all():
            broken.append(name)
        for old, new in demo.renamed:
            name = name.replace(old, new)
        if name.startswith(stem):
            for layer, part in enumerate(array):
                part = part.astype(ml_dtypes.bfloat16)
                yield f"{stem}{layer}.{name.removeprefix(stem)}", part
        else:
            yield name, array.astype(ml_dtypes.bfloat16)
    if broken:
        raise ValueError(f"parameters with NaN or infinity: {', '.join(broken)}")


def read_checkpoint(
    source: Path, like: nnx.State, demo: DemoModel = COGVIDEOX
) -> nnx.State:
    """The weights that `write_checkpoint` wrote, to continue training from.

    Args:
        source: diffusers root.
        like: state of the network; gives names, shapes and dtypes.
        demo: which network.

    Returns:
        A state of the same structure.

    Raises:
        ValueError: the file's tensors are not those of the network.
    """
    stored: dict[str, np.ndarray] = {}
    for path in sorted((source / "transformer").glob("*.safetensors")):
        stored.update(load_file(path))
    expected = {name: array.shape for name, array in diffusers_tensors(like, demo)}
    found = {name: array.shape for name, array in stored.items()}
    if expected != found:
        differing = sorted(
            name
            for name in expected.keys() | found.keys()
            if expected.get(name) != found.get(name)
        )
        raise ValueError(
            f"{source}: expected the tensors of the network, found others or other "
            f"shapes for {', '.join(differing[:8])} ({len(differing)} in all)"
        )
    stem = demo.stem

    def restored(path: tuple[Any, ...], variable: Any) -> Any:
        name, shape = parameter_name(path), variable.get_value().shape
        for old, new in demo.renamed:
            name = name.replace(old, new)
        if name.startswith(stem):
            rest = name.removeprefix(stem)
            value = np.stack([stored[f"{stem}{i}.{rest}"] for i in range(shape[0])])
        else:
            value = stored[name]
        return variable.replace(jnp.asarray(value, variable.get_value().dtype))

    flat = nnx.to_flat_state(like)
    return nnx.from_flat_state([(path, restored(path, v)) for path, v in flat])


def write_checkpoint(
    params: nnx.State,
    destination: Path,
    *,
    overrides: dict[str, Any] | None = None,
    shards: int = 2,
    demo: DemoModel = COGVIDEOX,
) -> None:
    """Write a diffusers root: model index, transformer (bf16 shards) and scheduler.

    Its files are listed with their checksums, which the converter verifies.

    Args:
        params: state of the network.
        destination: directory to create; it appears when it is complete.
        overrides: entries of the configuration that the network was built with.
        shards: number of weight files, of nearly equal size.
        demo: which network.

    Raises:
        ValueError: the destination exists, or parameters are not finite.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with files.new_directory(destination) as work:
        tensors = dict(diffusers_tensors(params, demo))
        _write_all(work, tensors, demo, overrides or {}, shards)
        checksums.write_manifest(work, checksums.DIFFUSERS)


def _write_all(
    root: Path,
    tensors: dict[str, np.ndarray],
    demo: DemoModel,
    overrides: dict[str, Any],
    shards: int,
) -> None:
    transformer, scheduler = root / "transformer", root / "scheduler"
    transformer.mkdir()
    scheduler.mkdir()
    total = sum(tensor.nbytes for tensor in tensors.values())
    groups: list[dict[str, np.ndarray]] = [{} for _ in range(shards)]
    written = 0
    for name in sorted(tensors):
        groups[min(written * shards // total, shards - 1)][name] = tensors[name]
        written += tensors[name].nbytes
    where = {}
    for number, group in enumerate(groups, start=1):
        file = f"{_WEIGHTS}-{number:05d}-of-{shards:05d}.safetensors"
        # diffusers refuses files that do not name their framework.
        save_file(group, transformer / file, metadata={"format": "pt"})
        # The library makes files that only their owner may read.
        (transformer / file).chmod(0o644)
        where |= dict.fromkeys(group, file)
    _write_json(
        transformer / f"{_WEIGHTS}.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": where},
    )
    _write_json(transformer / "config.json", {**demo.config(), **overrides})
    _write_json(scheduler / "scheduler_config.json", demo.scheduler_config())
    _write_json(
        root / "model_index.json",
        {
            "_class_name": demo.pipeline,
            "_diffusers_version": DIFFUSERS_VERSION,
            "scheduler": ["diffusers", demo.scheduler_config()["_class_name"]],
            "transformer": ["diffusers", demo.config()["_class_name"]],
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
