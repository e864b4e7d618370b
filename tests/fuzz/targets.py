"""The files that a campaign changes, and what reads each kind of them."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert import convert
from convert.planning import plan
from convert.reader import open_source
from convert.safetensors_file import TensorInfo
from convert.tables import table_for
from convert.torch_file import read_index
from sixbit_jax import checksums
from sixbit_jax.checkpoint import CheckpointReader, parameter_shapes
from sixbit_jax.models import registry
from sixbit_jax.policies import BlockGrid, ErrorPredictor
from sixbit_jax.policies.policy_file import PolicyFile, load_policy, save_policy
from sixbit_jax.sampling import schedulers
from tests.convert.checkpoints import NAME, write_checkpoint
from tests.fuzz import mutations
from tests.fuzz.campaign import Target
from tests.fuzz.configurations import COGVIDEOX, SCHEDULERS, WAN
from tests.fuzz.second_reader import (
    Tensors,
    json_values,
    safetensors_tensors,
    torch_tensors,
)

# The largest whole number and number that a configuration may change to.
_LARGEST = 2**31


def _read_all(tensors: Mapping[str, TensorInfo]) -> Tensors:
    return {
        name: (info.dtype.name, info.shape, info.read().tobytes())
        for name, info in tensors.items()
    }


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Our parameters, one path per layer."""
    table = table_for(config)
    shapes = {}
    for path, shape in parameter_shapes(table.model_class, config).items():
        stack, _, leaf = path.partition(".")
        for layer in range(shape[0]) if stack in table.stacks else ():
            shapes[f"{stack}.{layer}.{leaf}"] = shape[1:]
        if stack not in table.stacks:
            shapes[path] = shape
    return shapes


def _weights(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict of random weights, float16."""
    rng, table = np.random.default_rng(0), table_for(config)
    weights = {}
    for path, shape in _shapes(config).items():
        key, rule = table.source_of(path)
        size = rule.transform.source_shape(tuple(shape))
        weights[key] = rng.normal(size=size).astype(np.float16)
    return weights


def _files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def _checkpoint(config: Mapping[str, Any], shards: int = 0) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "m"
        return _files_of(
            write_checkpoint(directory, config, _weights(config), shards=shards)
        )


def _weights_target(name: str, mutated: Sequence[str], shards: int) -> Target:
    """Weights, and an index of them, that have to fit the network of a config."""
    table, shapes = table_for(WAN), _shapes(WAN)

    def read(directory: Path) -> Tensors:
        source = open_source(directory)
        assigned, _ = table.assign(source.tensors, shapes)
        return _read_all({chosen.key: chosen.tensor for chosen in assigned.values()})

    def accounts(directory: Path, result: Tensors) -> bool:
        files = sorted(directory.glob("*.safetensors"))
        found: Tensors = {}
        for file in files:
            found |= safetensors_tensors(file)
        return found == result

    chosen = mutations.JSON if name == "index" else mutations.SAFETENSORS
    return Target(name, _checkpoint(WAN, shards), mutated, chosen, read, accounts)


def _torch_target() -> Target:
    """What torch wrote: views, shared storages, every dtype."""
    golden = Path(__file__).parents[1] / "golden" / "torch_file" / "weights.pt"

    def read(directory: Path) -> Tensors:
        return _read_all(read_index(directory / "weights.pt"))

    def accounts(directory: Path, result: Tensors) -> bool:
        return torch_tensors(directory / "weights.pt") == result

    files = {"weights.pt": golden.read_bytes()}
    return Target("torch", files, ["weights.pt"], mutations.TORCH, read, accounts)


def _declared(base: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether all that differs between two configurations is of the same kind.

    Texts may not differ, numbers are positive and finite, whole numbers stay whole, and
    what is null may become a whole number. A field that is left out has the default of
    diffusers.
    """
    return found.keys() <= base.keys() and all(
        (value == base[key] and type(value) is type(base[key]))
        or _same_kind(base[key], value)
        for key, value in found.items()
    )  # fmt: skip


def _same_kind(base: Any, value: Any) -> bool:
    if isinstance(base, bool) or isinstance(value, bool):
        return isinstance(base, bool) and isinstance(value, bool)
    if isinstance(base, list):
        return (
            isinstance(value, list)
            and len(value) == len(base)
            and all(map(_same_kind, base, value))
        )
    if base is None or isinstance(base, int):
        return (value is None and base is None) or (
            type(value) is int and 0 <= value <= _LARGEST
        )  # fmt: skip
    if isinstance(base, float):
        return type(value) in (int, float) and 0 <= value <= _LARGEST
    return False


def _config_target(name: str, base: Mapping[str, Any]) -> Target:
    """A network's configuration beside the weights that it has to fit."""
    files = _checkpoint(base)
    unchanged = registry.get(base["_class_name"])[0].from_dict(base)

    def read(directory: Path) -> Any:
        source = open_source(directory)
        table = table_for(source.config)
        kinds = registry.get(table.model_class)[0]
        given = {k: v for k, v in source.config.items() if k != "quantization_config"}
        config = kinds.from_dict(given)
        if config != unchanged:
            plan(source, dtype="keep", weights="keep", rotation=0)
        return config

    def accounts(directory: Path, result: Any) -> bool:
        found = json_values(directory / "config.json")
        kept = {k: v for k, v in found.items() if not k.startswith("_")}
        says = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(result).items()
        }
        same = all(says.get(key, value) == value for key, value in kept.items())
        return same and _declared(
            {k: v for k, v in base.items() if not k.startswith("_")}, kept
        )

    return Target(name, files, ["config.json"], mutations.JSON, read, accounts)


def _scheduler_target(base: Mapping[str, Any]) -> Target:
    """A scheduler's configuration; one that is accepted has finite tables."""

    def read(directory: Path) -> Any:
        source = open_source(directory)
        assert source.scheduler is not None
        scheduler = schedulers.from_config(source.scheduler)
        if scheduler != unchanged:
            times = scheduler.timesteps(4)
            # The first table only: what a step computes with is made of it.
            state = [np.asarray(x) for x in _leaves(scheduler.init(4, (1,)))]
            numbers = [times, *(x for x in state if x.dtype.kind == "f")]
            assert all(np.isfinite(x).all() for x in numbers), (scheduler, numbers)
        return scheduler

    def accounts(directory: Path, result: Any) -> bool:
        file = directory / "scheduler" / "scheduler_config.json"
        found = {k: v for k, v in json_values(file).items() if k[:1] != "_"}
        return _declared({k: v for k, v in base.items() if k[:1] != "_"}, found)

    unchanged = schedulers.from_config(base)
    path = "scheduler/scheduler_config.json"
    files = {"config.json": b'{"_class_name": "WanTransformer3DModel"}'}
    files["model.safetensors"] = b"\x02\0\0\0\0\0\0\0{}"
    files[path] = json.dumps(base).encode()
    name = str(base["_class_name"]).removesuffix("Scheduler")
    return Target(name[:15], files, [path], mutations.JSON, read, accounts)


def _leaves(state: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(state)


def _policy_target() -> Target:
    """A policy file with every mechanism in it."""
    sites = ("attn_in", "attn_out")
    table = np.array([[0.5, 0.25], [0.125, 1.0]])
    policy = PolicyFile(
        model_class="WanTransformer3DModel",
        config_hash="0" * 64,
        sites=sites,
        num_blocks=2,
        predictor=ErrorPredictor(sites, table, table),
        threshold={"attn_in": 0.5, "attn_out": 0.25},
        importance=table.tolist(),
        final_int8=1,
        tau=0.125,
        skip_blocks=(0, 1),
        attention_max_gamma=0.5,
        calibration={"runs": 2, "notes": ["a", 0.5]},
    )
    with tempfile.TemporaryDirectory() as folder:
        save_policy(policy, Path(folder) / "policy.json")
        files = _files_of(Path(folder))

    def read(directory: Path) -> Any:
        found = load_policy(directory / "policy.json")
        grid = BlockGrid(found.num_blocks, found.sites, np.ones((found.num_blocks, 2)))
        if len(found.sites) == 2:
            found.policy().init(grid)
        return found

    def accounts(directory: Path, result: PolicyFile) -> bool:
        """Written again, it says what the file says: nothing was read as other."""
        save_policy(result, directory / "again.json")
        found = json_values(directory / "policy.json")
        again = json_values(directory / "again.json")
        return all(
            json.dumps(again[key], sort_keys=True) == json.dumps(value, sort_keys=True)
            or _rounded(again[key]) == _rounded(value)
            for key, value in found.items()
        )

    return Target("policy", files, ["policy.json"], mutations.JSON, read, accounts)


def _rounded(value: Any) -> Any:
    """Numbers as the float32 that they become, bools apart from numbers."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    if type(value) in (int, float):
        return float(np.float32(value))
    return repr(value)


def _directory_target() -> Target:
    """A converted directory: its header, and the files of its items."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_checkpoint(Path(folder) / "m", WAN, _weights(WAN))
        convert(source, Path(folder) / "made")
        files = _files_of(Path(folder) / "made")

    def read(directory: Path) -> Any:
        with CheckpointReader(directory) as reader:
            header = reader.header
            found = {
                f"{item.path(path)} {name}": (array.shape, array.tobytes())
                for item in header.items()
                for path, arrays in reader.read(item).items()
                for name, array in arrays.items()
            }
        return header.model_class, header.config, header.scheduler, found

    changed = [*files, *["sixbit.json"] * len(files)]
    return Target("directory", files, changed, mutations.BYTES, read)


def _listed_target() -> Target:
    """A diffusers directory with a list of checksums: every bit of it counts."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_checkpoint(Path(folder) / "m", WAN, _weights(WAN))
        checksums.write_manifest(source, checksums.DIFFUSERS)
        files = _files_of(source)
    table, shapes = table_for(WAN), _shapes(WAN)

    def read(directory: Path) -> Any:
        source = open_source(directory)
        assigned, _ = table.assign(source.tensors, shapes)
        tensors = {chosen.key: chosen.tensor for chosen in assigned.values()}
        return source.config, _read_all(tensors)

    return Target("listed", files, [*files], mutations.BYTES, read)


def make_targets() -> list[Target]:
    """All kinds of files."""
    weights = f"{NAME}.safetensors"
    return [
        _weights_target("safetensors", [weights], 0),
        _torch_target(),
        _weights_target("index", [f"{weights}.index.json"], 2),
        _config_target("Wan", WAN),
        _config_target("CogVideoX", COGVIDEOX),
        *map(_scheduler_target, SCHEDULERS),
        _policy_target(),
        _directory_target(),
        _listed_target(),
    ]
