"""How compact blocks of tokens are in each order: what sparse attention can gain by it.

    python -m benchmarks.quality.token_order --out token_order.json

For the token grids of real videos and blocks of 128 keys: the root mean square
distance of a block's tokens from its middle, and how much of a smooth field a block's
mean leaves out, 1 - mean over its pairs of exp(-distance^2 / (2 length^2)): what is
lost when a mean key stands for a block. Nothing is sampled, so this says nothing of
pictures; `benchmarks.quality.sparse` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sixbit_jax.benchmark import records
from sixbit_jax.nn.token_order import token_order
from sixbit_jax.sparsity import Order

GRIDS = {
    "cogvideox-5b": (13, 30, 45),
    "wan, 480p": (21, 30, 52),
    "wan, 720p": (21, 45, 80),
}
KEYS = 128
LENGTHS = (2.0, 4.0, 8.0)


def measure(grid: tuple[int, int, int], order: Order) -> dict[str, Any]:
    """Of all whole blocks."""
    places = np.indices(grid).reshape(3, -1).T.astype(np.float64)
    moved = token_order(grid, order)
    if moved is not None:
        places = places[moved]
    blocks = places[: len(places) // KEYS * KEYS].reshape(-1, KEYS, 3)
    middle = blocks - blocks.mean(1, keepdims=True)
    radius = np.sqrt(np.square(middle).sum(-1).mean())
    lost = {str(length): 0.0 for length in LENGTHS}
    for block in blocks:
        apart = np.square(block[:, None] - block[None]).sum(-1)
        for length in LENGTHS:
            near = np.exp(-apart / (2 * length**2)).mean()
            lost[str(length)] += float(1 - near) / len(blocks)
    return {"radius": float(radius), "left_out_by_length": lost}


def rows() -> Iterator[dict[str, Any]]:
    """One record per grid and order."""
    for name, grid in GRIDS.items():
        for order in get_args(Order):
            yield {
                "kind": "token_order",
                "video": name,
                "grid": list(grid),
                "order": order,
                "keys": KEYS,
                **measure(grid, order),
            }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results file, .json")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.quality.token_order", "--out", args.out.name]
    found = list(rows())
    records.write(args.out, records.header(command), found)
    for record in found:
        print(record["video"], record["order"], round(record["radius"], 2), record)


if __name__ == "__main__":
    main()
