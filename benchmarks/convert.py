"""Time and peak memory of converting a checkpoint of CogVideoX-5b's size.

    python -m benchmarks.convert --scratch DIR

makes a bf16 checkpoint with random weights (two shards and an index, 11 GB; needs 23 GB
of room under DIR for `--weights keep`), converts it in a process of its own with
`python -m convert`, reads that process's peak resident memory from the operating
system, and removes everything again. With `--load` a further process loads the result.
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

import ml_dtypes
import numpy as np

from convert.rules import RuleTable
from convert.safetensors_file import SafetensorsWriter
from convert.tables import table_for
from sixbit_jax.checkpoint import parameter_shapes, summarize

CONFIG = {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
NUM_SHARDS = 2
RESULTS = Path(__file__).parent / "results"


def source_shapes(config: dict, table: RuleTable) -> dict[str, tuple[int, ...]]:
    """Shapes by the checkpoint's keys."""
    shapes = {}
    for path, shape in parameter_shapes(config["_class_name"], config).items():
        stack, _, leaf = path.partition(".")
        if stack not in table.stacks:
            shapes[table.source_of(path)[0]] = shape
            continue
        for layer in range(shape[0]):
            key, _ = table.source_of(f"{stack}.{layer}.{leaf}")
            shapes[key] = shape[1:]
    return shapes


def make_checkpoint(directory: Path, config: dict) -> int:
    """Writes a random bf16 checkpoint, one tensor at a time.

    Returns:
      Bytes of its safetensors files.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    keys = source_shapes(config, table_for(config))
    half = sum(int(np.prod(shape)) for shape in keys.values()) / NUM_SHARDS
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(NUM_SHARDS)]
    total = 0
    for key, shape in keys.items():
        parts[min(int(total / half), NUM_SHARDS - 1)][key] = shape
        total += int(np.prod(shape))
    weight_map = {}
    random = np.random.default_rng(0)
    dtype = np.dtype(ml_dtypes.bfloat16)
    for number, part in enumerate(parts, 1):
        name = f"diffusion_pytorch_model-{number:05}-of-{NUM_SHARDS:05}.safetensors"
        layout = {key: (dtype, shape) for key, shape in part.items()}
        writer = SafetensorsWriter(directory / name, layout, {"format": "pt"})
        for key, shape in part.items():
            values = random.standard_normal(shape, dtype=np.float32)
            writer.write(key, (values * np.float32(0.02)).astype(dtype))
        writer.close()
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    name = "diffusion_pytorch_model.safetensors.index.json"
    (directory / name).write_text(json.dumps(index))
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
    scratch: Path, source: Path, args: argparse.Namespace, weights: str
) -> dict:
    """Converts `source` once; one flat record."""
    source_bytes = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    destination = scratch / f"converted-{weights}"
    seconds, peak = measure(
        ["-m", "convert", str(source), str(destination), "--weights", weights]
    )
    facts = summarize(destination)
    record = {
        "model": args.model_name,
        "layers": args.layers,
        "weights": weights,
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak,
        "source_bytes": source_bytes,
        "written_bytes": facts.disk_bytes,
        "parameters": facts.num_parameters,
        "weight_bytes": facts.memory_bytes,
        "disk_ratio_to_bf16": round(facts.disk_ratio, 3),
        "memory_ratio_to_bf16": round(facts.memory_ratio, 3),
        "load_seconds": None,
        "load_peak_rss_bytes": None,
    }
    if args.load and weights == "nvfp4":
        program = (
            "import sys; from sixbit_jax import checkpoint as c; c.load(sys.argv[1])"
        )
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
    parser.add_argument("--layers", type=int, default=42, help="42 is CogVideoX-5b")
    parser.add_argument("--weights", nargs="+", default=["keep", "nvfp4"])
    parser.add_argument(
        "--load", action="store_true", help="also load the nvfp4 result (3.2 GB)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu" / "convert.json")
    args = parser.parse_args()
    args.model_name = "CogVideoX-5b" if args.layers == 42 else "CogVideoX-5b, cut"
    scratch = Path(tempfile.mkdtemp(prefix="convert-", dir=args.scratch))
    try:
        source = scratch / "transformer"
        size = make_checkpoint(source, CONFIG | {"num_layers": args.layers})
        print(f"made {size:,} bytes", flush=True)
        records = [run_one(scratch, source, args, w) for w in args.weights]
    finally:
        shutil.rmtree(scratch)
    # The place of the scratch directory says nothing about the measurement.
    shown = [f"--layers {args.layers}", f"--weights {' '.join(args.weights)}"]
    text = json.dumps(results(records, shown + ["--load"] * args.load), indent=1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
