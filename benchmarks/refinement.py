"""Times the refinement of HunyuanVideo's weights: DVD-Quant's grids, NVFP4's scales.

    python -m benchmarks.refinement --out FILE
    python -m benchmarks.refinement --rows 64 --out FILE     # on two CPU cores

All 520 linears of the blocks (modulation included) are of a few shapes. One random
matrix of each is fitted, and its time counts as often as the shape does. The rows of a
matrix are fitted on their own: with `--rows` only so many are, and the time is scaled
by what they are of all; the record says so.
"""

import argparse
import collections
import json
import math
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sixbit_jax.benchmark import records
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.network import HunyuanVideoTransformer
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe
from sixbit_jax.quantizers.storage import rotation_of
from sixbit_jax.quantizers.uniform import UniformRecipe

RECIPES: dict[str, Any] = {
    "uniform4, grid refinement": UniformRecipe(4, grid="bgr"),
    "uniform4, minmax": UniformRecipe(4),
    "nvfp4, refined": NVFP4Recipe(refine=True),
    "nvfp4": NVFP4Recipe(),
}


def linears(config: HunyuanVideoConfig) -> dict[tuple[int, int, str], int]:
    """How many linears of the blocks there are by (rows, columns, role)."""
    network = HunyuanVideoTransformer
    empty = nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0)))
    found: collections.Counter = collections.Counter()
    for path, variable in nnx.to_flat_state(nnx.state(empty)):
        name = ".".join(map(str, path))
        role = network.weight_role(name)
        if path[0] in network.stack_names and role is not None:
            layers, rows, columns = variable.get_value().shape
            found[rows, columns, role] += layers
    return dict(found)


def _matrix(key: jax.Array, rows: int, columns: int) -> jax.Array:
    return jax.random.normal(key, (rows, columns), jnp.float32) / math.sqrt(columns)


def measure(
    config: HunyuanVideoConfig, name: str, *, rows: int | None, repeats: int
) -> dict[str, Any]:
    """One recipe on a matrix of every shape.

    Args:
      config: of the network.
      name: in `RECIPES`.
      rows: fitted of each matrix; None: all.
      repeats: timed calls, after one that compiles; the fastest counts.
    """
    recipe, total, fitted, shapes = RECIPES[name], 0.0, 0, []
    first = 0.0
    for (height, width, role), count in sorted(linears(config).items()):
        few = height if rows is None else min(rows, height)
        weight = jax.block_until_ready(_matrix(jax.random.key(0), few, width))
        rotation = rotation_of(recipe, role, width) or 0
        times = []
        for _ in range(1 + repeats):
            began = time.perf_counter()
            made = recipe.compress(weight, rotation=rotation)
            jax.block_until_ready(made)
            times.append(time.perf_counter() - began)
        best = min(times[1:])
        error = made.dequantize(jnp.float32) - _rotated(weight, rotation)
        shapes.append(
            {
                "rows": height,
                "columns": width,
                "count": count,
                "rows_fitted": few,
                "seconds": best,
                "relative_mse": float((error**2).sum() / (weight**2).sum()),
            }
        )
        first += times[0] - best
        total += best * height / few * count
        fitted += count
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "model": "hunyuan-video",
        "program": name,
        "linears": fitted,
        "values": sum(h * w * n for (h, w, _), n in linears(config).items()),
        "seconds": total,
        "compile_s": first,
        "scaled": "one matrix of each shape, times their number"
        + ("" if rows is None else "; times the share of the rows that were fitted"),
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cores": len(os.sched_getaffinity(0)),
        "shapes": shapes,
    }


def _rotated(weight: jax.Array, rotation: int) -> jax.Array:
    from sixbit_jax.formats.rotation import rotate

    return rotate(weight, rotation) if rotation else weight


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Records of all recipes; one that fails names its failure."""
    config = HunyuanVideoConfig()
    for name in args.only or RECIPES:
        try:
            yield measure(config, name, rows=args.rows, repeats=args.repeats)
        except (RuntimeError, ValueError) as error:
            yield {"program": name, "failure": f"{type(error).__name__}: {error}"[:300]}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="of each matrix (all)")
    parser.add_argument("--repeats", type=int, default=2, help="timed calls (2)")
    parser.add_argument("--only", action="append", default=[], choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument("--commit", help="for machines without the repository")
    args = parser.parse_args(argv)
    command = ["python", "-m", "benchmarks.refinement", "--repeats", str(args.repeats)]
    command += [] if args.rows is None else ["--rows", str(args.rows)]
    command += [word for name in args.only for word in ("--only", name)]
    head = records.header(
        [*command, "--out", args.out.name],
        packages=records.PACKAGES,
        commit_id=args.commit,
    )
    found: list[dict[str, Any]] = []
    for record in run(args):
        found.append(record)
        print(json.dumps({k: v for k, v in record.items() if k != "shapes"}))
        records.write(args.out, head, found)


if __name__ == "__main__":
    main()
