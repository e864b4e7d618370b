"""`sixbit inspect`: what a converted or a diffusers directory holds."""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

DESCRIPTION = (
    "Says what a directory holds, from headers and sizes of files: model, parameters, "
    "bytes by dtype, sites, quantization, and its size against bf16. Takes a directory "
    "that `sixbit convert` made (with one network, or with both of Wan2.2-A14B), or a "
    "diffusers directory. Missing and truncated files are errors; --verify reads all "
    "files and holds them against their checksums."
)
EPILOG = """\
examples:
  sixbit inspect cogvideox-5b-nvfp4
  sixbit inspect cogvideox-5b-nvfp4 --verify
  sixbit inspect CogVideoX-5b --json
"""


_KINDS = {
    "converted": "converted checkpoint",
    "diffusers": "diffusers checkpoint (`sixbit convert` makes it ours)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all files and check their checksums, where the directory has some",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    facts = describe(args.directory, verify=args.verify)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    if facts["kind"] == "pipeline":
        _print_pipeline(facts)
        return 0
    if facts["kind"] == "pair":
        for name, network in facts["networks"].items():
            print(f"{name} ({_part_of(name, facts['boundary'])})")
            _print(network)
        return 0
    _print(facts)
    return 0


def _part_of(name: str, boundary: float) -> str:
    side = "from" if name == "high_noise" else "below"
    return f"steps {side} {boundary:g} of the noise"


def describe(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """The facts about a directory, as JSON values.

    Args:
      path: the directory.
      verify: whether all files are read and held against their checksums.

    Raises:
      ValueError: if it is neither a converted nor a diffusers directory, or it is
        damaged.
    """
    if (path / "sixbit.json").is_file():
        return _converted(path, verify)
    if (path / "sixbit_pipeline.json").is_file():
        return _pipeline(path, verify)
    if (path / "pair.json").is_file():
        return _pair(path, verify)
    from convert.pair import FOLDERS, boundary_of, is_pair
    from sixbit_jax.checkpoint.pair import NETWORKS

    if is_pair(path):
        return {
            "kind": "pair",
            "boundary": boundary_of(path),
            "networks": {
                name: _diffusers(path / folder)
                for name, folder in zip(NETWORKS, FOLDERS, strict=True)
            },
        }
    return _diffusers(path)


def _pipeline(path: Path, verify: bool) -> dict[str, Any]:
    from sixbit_jax.pipelines.header import read_pipeline_header

    header = read_pipeline_header(path)
    return {
        "kind": "pipeline",
        "pipeline": header.pipeline_class,
        "components": {
            name: _converted(path / name, verify) for name in header.components
        },
        "copied": list(header.tokenizers),
        "left_out": dict(header.missing),
        "options": dict(header.options),
        "scheduler": (header.scheduler or {}).get("_class_name"),
    }


def _print_pipeline(facts: dict[str, Any]) -> None:
    from sixbit_jax.report.tables import print_table, table

    rows = [
        [
            name,
            found["model"],
            f"{found['parameters']:,}",
            f"{found['weight_bits']:.2f}",
            f"{found['memory_bytes']:,}",
            found["checksums"].split(",")[0],
        ]
        for name, found in facts["components"].items()
    ]
    columns = ["component", "class", "parameters", "bits each", "bytes", "checksums"]
    title = f"{facts['pipeline']}, scheduler {facts['scheduler'] or 'none'}"
    print_table(table(columns, rows, title=title))
    if facts["copied"]:
        print(f"copied: {', '.join(facts['copied'])}")
    for name, why in facts["left_out"].items():
        print(f"left out: {name} ({why})")
    for name, value in facts["options"].items():
        print(f"{name}: {value}")


def _pair(path: Path, verify: bool) -> dict[str, Any]:
    from sixbit_jax.checkpoint.pair import NETWORKS, read_boundary

    return {
        "kind": "pair",
        "boundary": read_boundary(path),
        "networks": {name: _converted(path / name, verify) for name in NETWORKS},
    }


def _verified(began: float, size: int) -> str:
    if not size:
        return "none: made by an earlier version"
    seconds = time.perf_counter() - began
    return f"verified, {size:,} bytes in {seconds:.1f} s"


def _converted(path: Path, verify: bool) -> dict[str, Any]:
    from sixbit_jax import checkpoint

    found = checkpoint.summarize(path)
    said = "stored, not read (--verify reads them)"
    if not found.header.checksums:
        said = "none: made by an earlier version"
    if verify:
        began = time.perf_counter()
        _, size = checkpoint.verify(path)
        said = _verified(began, size)
    rotations = {spec.rotation for spec, _ in found.header.specs()}
    return {
        "kind": "converted",
        "model": found.header.model_class,
        "scheduler": (found.header.scheduler or {}).get("_class_name"),
        "blocks": found.num_blocks,
        "sites": list(found.sites),
        "parameters": found.num_parameters,
        "quantization": dict(found.header.quantization),
        "rotation": max(rotations, default=0),
        "dtypes": {
            name: {"values": found.values_by_dtype[name], "bytes": stored}
            for name, stored in sorted(found.bytes_by_dtype.items())
        },
        "memory_bytes": found.memory_bytes,
        "disk_bytes": found.disk_bytes,
        "bf16_bytes": found.bf16_bytes,
        "weight_bits": found.weight_bits,
        "memory_ratio": found.memory_ratio,
        "disk_ratio": found.disk_ratio,
        "checksums": said,
        "source": dict(found.header.source),
    }


def _diffusers(path: Path) -> dict[str, Any]:
    from convert.listed import check_listed
    from convert.reader import open_source
    from sixbit_jax import components

    # Opening it holds the files against a list of checksums, if it has one.
    source = open_source(path)
    began = time.perf_counter()
    size = check_listed(source.directory)
    said = "none" if size is None else _verified(began, size)
    model_class = components.class_name_of(source.config)
    config_class, model = components.get(model_class)
    config = config_class.from_dict(source.config)
    blocks, sites = None, []
    if components.kind_of(model_class) == "transformer":
        described = model.describe(config)
        blocks, sites = described.num_blocks, list(described.sites)
    dtypes: dict[str, dict[str, int]] = {}
    for tensor in source.tensors.values():
        row = dtypes.setdefault(tensor.dtype.name, {"values": 0, "bytes": 0})
        row["values"] += math.prod(tensor.shape)
        row["bytes"] += tensor.nbytes
    count = sum(row["values"] for row in dtypes.values())
    memory = sum(row["bytes"] for row in dtypes.values())
    return {
        "kind": "diffusers",
        "model": model_class,
        "scheduler": (source.scheduler or {}).get("_class_name"),
        "blocks": blocks,
        "sites": sites,
        "parameters": count,
        "quantization": {},
        "rotation": 0,
        "dtypes": dict(sorted(dtypes.items())),
        "memory_bytes": memory,
        "disk_bytes": source.nbytes,
        "bf16_bytes": 2 * count,
        "weight_bits": 8 * memory / count,
        "memory_ratio": 2 * count / memory,
        "disk_ratio": 2 * count / source.nbytes,
        "checksums": said,
        "source": {"files": [file.name for file in source.files]},
    }


def _print(facts: dict[str, Any]) -> None:
    from sixbit_jax.report.tables import byte_size, facts_table, print_table, table

    recipe = ", ".join(f"{k} {v}" for k, v in facts["quantization"].items()) or "none"
    print_table(
        facts_table(
            {
                "kind": _KINDS[facts["kind"]],
                "model": facts["model"],
                "scheduler": facts["scheduler"] or "none",
                "parameters": f"{facts['parameters']:,}",
                "blocks": f"{facts['blocks']}, each with the sites "
                + ", ".join(facts["sites"]),
                "quantization": recipe,
                "in memory": f"{byte_size(facts['memory_bytes'])}, "
                f"{facts['weight_bits']:.2f} bits per parameter, "
                f"{facts['memory_ratio']:.2f}x smaller than bf16",
                "on disk": f"{byte_size(facts['disk_bytes'])}, "
                f"{facts['disk_ratio']:.2f}x smaller than bf16",
                "checksums": facts["checksums"],
            }
        )
    )
    rows = [
        [name, f"{row['values']:,}", f"{row['bytes']:,}", byte_size(row["bytes"])]
        for name, row in facts["dtypes"].items()
    ]
    print_table(table(["dtype", "values", "bytes", "size"], rows))
