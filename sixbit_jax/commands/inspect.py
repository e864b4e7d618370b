"""`sixbit inspect`: what a converted or a diffusers directory holds."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

DESCRIPTION = (
    "Says what a directory holds, from headers alone: model, parameters, bytes by "
    "dtype, sites, quantization, and its size against bf16. Takes a directory that "
    "`sixbit convert` made, or a diffusers directory."
)
EPILOG = """\
examples:
  sixbit inspect cogvideox-5b-nvfp4
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


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    facts = describe(args.directory)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts)
    return 0


def describe(path: Path) -> dict[str, Any]:
    """The facts about a directory, as JSON values.

    Raises:
      ValueError: if it is neither a converted nor a diffusers directory.
    """
    if (path / "sixbit.json").is_file():
        return _converted(path)
    return _diffusers(path)


def _converted(path: Path) -> dict[str, Any]:
    from sixbit_jax.checkpoint import summarize

    found = summarize(path)
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
        "source": dict(found.header.source),
    }


def _diffusers(path: Path) -> dict[str, Any]:
    from convert.reader import open_source
    from sixbit_jax.models import registry

    source = open_source(path)
    model_class = str(source.config.get("_class_name"))
    config_class, model = registry.get(model_class)
    config = config_class.from_dict(source.config)
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
        "blocks": model.describe(config).num_blocks,
        "sites": list(model.describe(config).sites),
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
            }
        )
    )
    rows = [
        [name, f"{row['values']:,}", f"{row['bytes']:,}", byte_size(row["bytes"])]
        for name, row in facts["dtypes"].items()
    ]
    print_table(table(["dtype", "values", "bytes", "size"], rows))
