"""Peak memory of whole pipelines under the memory of small cards, on a larger one.

    python -m benchmarks.small_cards --out FILE [--only 5b,wan-1.3b,wan-14b]

Each model makes a video at its published size from random weights made on the device
(`benchmarks.pipeline --made`), two steps of it, in a process whose allocator may use no
more than the card has: what does not fit fails. Two steps need as much memory as fifty.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sixbit_jax.benchmark import records

# Gigabytes of the card, and what of it programs may use: the rest is the driver's.
CARDS = {"5b": 12, "wan-1.3b": 12, "wan-14b": 24}
_USABLE = 0.92


def total_bytes() -> int:
    """Memory of the first GPU, asked in a process that then lets go of it.

    Raises:
        RuntimeError: there is none.
    """
    question = (
        "import jax; stats = jax.devices()[0].memory_stats() or {}; "
        "print(stats.get('bytes_limit', 0))"
    )
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    answer = subprocess.run(
        [sys.executable, "-c", question],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    half = int(answer.stdout)
    if not half:
        raise RuntimeError("small_cards: expected a GPU that tells its memory")
    return 2 * half


def run_limited(
    model: str, gigabytes: int, total: int, commit: str | None
) -> list[dict[str, Any]]:
    """The records of one pipeline under a limit, or its failure."""
    limit = _USABLE * gigabytes * 1e9
    # The allocator reserves the whole of its share, so that it cannot grow past it.
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{limit / total:.4f}",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
    }
    facts = {"model": model, "card_gb": gigabytes, "limit_bytes": int(limit)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.pipeline", "--model", model]
        command += ["--made", "--steps", "2", "--skips", "0.0", "--out", str(out)]
        command += ["--commit", commit] if commit else []
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        found = records.read(out)["records"] if out.exists() else []
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return [{**facts, "fits": False, "failure": lines[-1][-400:] if lines else ""}]
    return [{**record, **facts, "fits": True} for record in found]


def main() -> int:
    """The command line; fails if something does not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument("--only", default=",".join(CARDS), help="models, by commas")
    parser.add_argument("--commit", help="for machines without the repository")
    args = parser.parse_args()
    models = args.only.split(",")
    if unknown := set(models) - set(CARDS):
        parser.error(f"--only: expected some of {list(CARDS)}, found {sorted(unknown)}")
    head = records.header(
        ["python", "-m", "benchmarks.small_cards", "--only", args.only],
        commit_id=args.commit,
        # This process asks in the end: until then the device is the pipelines'.
        machine_name="unknown",
    )
    total = total_bytes()
    found: list[dict[str, Any]] = []
    for model in models:
        for record in run_limited(model, CARDS[model], total, args.commit):
            found.append(record)
            print(record, flush=True)
            records.write(args.out, head, found)
    head["machine"] = records.machine()
    records.write(args.out, head, found)
    return int(not all(record["fits"] for record in found))


if __name__ == "__main__":
    sys.exit(main())
