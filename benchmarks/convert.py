"""Time and peak memory of converting checkpoints of real size.

    python -m benchmarks.convert --scratch DIR
    python -m benchmarks.convert --model wan2.2-a14b --layers 2 8 --scratch DIR

The first makes a bf16 checkpoint of CogVideoX-5b's size with random weights (two shards
and an index, 11 GB; needs 23 GB of room under DIR for `--weights keep`), converts it in
a process of its own with `python -m convert`, reads that process's peak resident memory
from the operating system, and removes everything again. With `--load` a further process
loads the result.

The second does the same for the two networks of Wan2.2-A14B in float32, 57 GB each with
their 40 layers, cut to as many layers as the disk has room for, once per number of
layers: 1.4 GB per layer and network. Memory that does not grow from one number to the
next does not grow up to 40.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from convert.rules import RuleTable
from convert.safetensors_file import SafetensorsWriter
from convert.tables import table_for
from sixbit_jax import components
from sixbit_jax.checkpoint import parameter_shapes, summarize
from sixbit_jax.checkpoint.pair import NETWORKS

_WAN = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
}


class Model(NamedTuple):
    """A checkpoint to imitate.

    Attributes:
      title: for records.
      config: the network's config.json.
      dtype: of the source.
      shards: number of files per network.
      folders: of its networks.
    """

    title: str
    config: dict
    dtype: np.dtype
    shards: int
    folders: tuple[str, ...]


MODELS = {
    "cogvideox-5b": Model(
        "CogVideoX-5b",
        {
            "_class_name": "CogVideoXTransformer3DModel",
            "num_attention_heads": 48,
            "attention_head_dim": 64,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
        },
        np.dtype(ml_dtypes.bfloat16),
        2,
        ("transformer",),
    ),
    "wan2.1-14b": Model("Wan2.1-14B", _WAN, np.dtype(np.float32), 12, ("transformer",)),
    "wan2.2-a14b": Model(
        "Wan2.2-A14B",
        _WAN,
        np.dtype(np.float32),
        12,
        ("transformer", "transformer_2"),
    ),
}
RESULTS = Path(__file__).parent / "results"


def source_shapes(config: dict, table: RuleTable) -> dict[str, tuple[int, ...]]:
    """Shapes by the checkpoint's keys."""
    shapes = {}
    name = components.class_name_of(config)
    for path, shape in parameter_shapes(name, config).items():
        stack, _, leaf = path.partition(".")
        if stack not in table.stacks:
            shapes[table.source_of(path)[0]] = shape
            continue
        for layer in range(shape[0]):
            key, _ = table.source_of(f"{stack}.{layer}.{leaf}")
            shapes[key] = shape[1:]
    return shapes


def make_checkpoint(directory: Path, config: dict, model: Model) -> int:
    """Writes a random checkpoint, one tensor at a time.

    Returns:
      Bytes of its safetensors files.
    """
    keys = source_shapes(config, table_for(config))
    return write_shards(directory, config, keys, model.dtype, model.shards)


def write_shards(
    directory: Path,
    config: dict,
    keys: dict[str, tuple[int, ...]],
    dtype: np.dtype,
    shards: int,
    *,
    stem: str = "diffusion_pytorch_model",
) -> int:
    """Writes random tensors as shards with an index, one tensor at a time.

    Args:
      directory: to make.
      config: its config.json.
      keys: shapes by key.
      dtype: of all tensors.
      shards: number of files.
      stem: how their names begin.

    Returns:
      Bytes of its safetensors files.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    each = sum(int(np.prod(shape)) for shape in keys.values()) / shards
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    total = 0
    for key, shape in keys.items():
        parts[min(int(total / each), shards - 1)][key] = shape
        total += int(np.prod(shape))
    weight_map = {}
    random = np.random.default_rng(0)
    for number, part in enumerate(parts, 1):
        name = f"{stem}-{number:05}-of-{shards:05}.safetensors"
        layout = {key: (dtype, shape) for key, shape in part.items()}
        writer = SafetensorsWriter(directory / name, layout, {"format": "pt"})
        for key, shape in part.items():
            values = random.standard_normal(shape, dtype=np.float32)
            values *= np.float32(0.02)
            writer.write(key, values.astype(dtype, copy=False))
        writer.close()
        weight_map |= dict.fromkeys(part, name)
    index = {
        "metadata": {"total_size": dtype.itemsize * total},
        "weight_map": weight_map,
    }
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return sum(f.stat().st_size for f in directory.glob("*.safetensors"))


def measure(arguments: list[str]) -> tuple[float, int]:
    """Runs Python with arguments; seconds and peak resident bytes of that process.

    Raises:
      RuntimeError: if it fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments])
    # wait4, unlike RUSAGE_CHILDREN, is about this one process.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments}: exit status {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def run_one(
    scratch: Path, source: Path, model: Model, layers: int, weights: str, load: bool
) -> dict:
    """Converts `source` once; one flat record."""
    source_bytes = sum(f.stat().st_size for f in source.rglob("*.safetensors"))
    destination = scratch / f"converted-{weights}"
    seconds, peak = measure(
        ["-m", "convert", str(source), str(destination), "--weights", weights]
    )
    parts = [destination / name for name in NETWORKS[: len(model.folders)]]
    found = [summarize(p) for p in (parts if len(parts) > 1 else [destination])]
    facts = found[0]
    cut = "" if layers == model.config["num_layers"] else ", cut"
    record = {
        "model": model.title + cut,
        "layers": layers,
        "networks": len(found),
        "source_dtype": model.dtype.name,
        "weights": weights,
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak,
        "source_bytes": source_bytes,
        "written_bytes": sum(f.disk_bytes for f in found),
        "parameters": sum(f.num_parameters for f in found),
        "weight_bytes": sum(f.memory_bytes for f in found),
        "disk_ratio_to_bf16": round(facts.disk_ratio, 3),
        "memory_ratio_to_bf16": round(facts.memory_ratio, 3),
        "load_seconds": None,
        "load_peak_rss_bytes": None,
    }
    if load and weights == "nvfp4":
        name = "load" if len(found) == 1 else "load_pair"
        program = f"import sys, sixbit_jax as s; s.{name}(sys.argv[1])"
        seconds, peak = measure(["-c", program, str(destination)])
        record |= {"load_seconds": round(seconds, 1), "load_peak_rss_bytes": peak}
    shutil.rmtree(destination)
    return record


def machine() -> str:
    """The processor and its number of cores."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def results(records: list[dict], command: list[str]) -> dict:
    """The results file around the records."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = ("jax", "flax", "numpy", "ml_dtypes", "orbax-checkpoint")
    return {
        "command": " ".join(["python", "-m", "benchmarks.convert", *command]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version()},
        "records": records,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="where to put the checkpoints")
    parser.add_argument("--model", choices=MODELS, default="cogvideox-5b")
    parser.add_argument(
        "--layers", type=int, nargs="+", help="one run per number (all layers)"
    )
    parser.add_argument("--weights", nargs="+", default=["keep", "nvfp4"])
    parser.add_argument(
        "--load", action="store_true", help="also load the nvfp4 result"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu" / "convert.json")
    args = parser.parse_args()
    model = MODELS[args.model]
    given = args.layers or [model.config["num_layers"]]
    found = []
    for layers in given:
        scratch = Path(tempfile.mkdtemp(prefix="convert-", dir=args.scratch))
        try:
            config = model.config | {"num_layers": layers}
            source = scratch / "source"
            sizes = [make_checkpoint(source / f, config, model) for f in model.folders]
            print(f"{layers} layers: made {sum(sizes):,} bytes", flush=True)
            for weights in args.weights:
                found.append(
                    run_one(scratch, source, model, layers, weights, args.load)
                )
        finally:
            shutil.rmtree(scratch)
    # The place of the scratch directory says nothing about the measurement.
    shown = [f"--model {args.model}", f"--layers {' '.join(map(str, given))}"]
    shown.append(f"--weights {' '.join(args.weights)}")
    text = json.dumps(results(found, shown + ["--load"] * args.load), indent=1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
