"""Predicts the time of a step on 1 to 64 devices, from what one device was measured at.

    python -m benchmarks.sampling.scaling [--measured FILE]

A block is linears and attention at the rates of the records, everything else at the
time per token and channel of the records, and the expansion of its weights, which no
number of devices divides. Over the `sequence` axis a block exchanges queries, keys,
values and results; what of that runs beside attention costs nothing. Over `guidance`
nothing is exchanged within a step. Rates of links were measured on two H200s of one
host; between hosts they are an assumption, which the table says.

`--measured` takes a file of `benchmarks.sampling.mesh` and prints its efficiencies
beside the predicted ones.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "h200"
PARTS_OF = "sampling_5b.json"
COUNTS = (1, 2, 4, 8, 16, 32, 64)
_EXCHANGED = 2  # bytes of a value: all of them travel in 16 bits.


@dataclass(frozen=True)
class Work:
    """What of a network's forward pass a prediction needs.

    Attributes:
      name: of the model.
      tokens: of its published video, text in the stream included.
      words: of a prompt that is read by cross-attention; 0: none.
      dim, heads, blocks: of the network.
      macs: of a block's linears, per token.
      branches: guidance branches.
    """

    name: str
    tokens: int
    words: int
    dim: int
    heads: int
    blocks: int
    macs: float
    branches: int = 2

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads


def _square(dim: int, count: float) -> float:
    return count * dim**2


NETWORKS = (
    Work("CogVideoX-5b", 17_776, 0, 3072, 48, 42, _square(3072, 12)),
    Work("CogVideoX-2b", 17_776, 0, 1920, 30, 30, _square(1920, 12)),
    Work(
        "Wan 1.3B, 480p", 32_760, 512, 1536, 12, 30, _square(1536, 6) + 2 * 1536 * 8960
    ),
    Work(
        "Wan 14B, 480p", 32_760, 512, 5120, 40, 40, _square(5120, 6) + 2 * 5120 * 13824
    ),
    Work("HunyuanVideo, 720p", 119_056, 0, 3072, 24, 60, _square(3072, 12), 1),
)


@dataclass(frozen=True)
class Rates:
    """What one device and its links do.

    Attributes:
      linear: operations per second of INT8 linears.
      attention: of attention with INT8 scores, by channels of a head.
      token_seconds: of everything element-wise in a block, per token and channel.
      weight_seconds: of expanding weights, per multiply-accumulate of a token.
      link: bytes per second that leave a device in an exchange within a host.
      network: the same between hosts; assumed.
      latency: seconds of an exchange of nothing.
      exposed: share of the exchanges that does not run beside attention.
      per_host: devices of a host.
    """

    linear: float
    attention: dict[int, float]
    token_seconds: float
    weight_seconds: float
    link: float = 27.3e6 / 0.24e-3
    network: float = 40e9
    latency: float = 20e-6
    exposed: float = 0.625
    per_host: int = 8


def rates(folder: Path = RESULTS) -> Rates:
    """The rates that the records of one device say."""
    parts = json.loads((folder / PARTS_OF).read_text())["records"]
    work = NETWORKS[0]
    int8 = {
        (r["part"], r["op"]): r["op_ms"] * 1e-3 * r["per_block"]
        for r in parts
        if "part" in r and r["variant"] == "int8"
    }
    by_part = {
        part: sum(seconds for (p, _), seconds in int8.items() if p == part)
        for part in ("linears", "quantization", "element-wise", "expansion")
    }
    attention = json.loads((folder / "attention.json").read_text())["records"]
    speeds = {
        r["shape"][4]: r["tflops"] * 1e12
        for r in attention
        if r.get("implementation") == "int8-best" and r["shape"][2] > work.words + 512
    }
    other = by_part["quantization"] + by_part["element-wise"]
    return Rates(
        linear=2 * work.macs * work.tokens / by_part["linears"],
        attention=speeds,
        token_seconds=other / (work.tokens * work.dim),
        weight_seconds=by_part["expansion"] / work.macs,
    )


def layout(work: Work, devices: int) -> tuple[int, int] | None:
    """(guidance, sequence) of the default layout; None where heads do not divide."""
    branches = work.branches if devices % work.branches == 0 else 1
    sequence = devices // branches
    return None if work.heads % sequence else (branches, sequence)


def block_seconds(work: Work, sequence: int, found: Rates) -> float:
    """One block of one branch, its tokens over `sequence` devices."""
    tokens = math.ceil(work.tokens / sequence)
    linear = 2 * work.macs * tokens / found.linear
    keys = work.tokens + work.words
    attention = 4 * work.tokens * keys * work.dim / sequence
    attention /= found.attention[work.head_dim]
    other = found.token_seconds * tokens * work.dim + found.weight_seconds * work.macs
    return linear + attention + other + _exchange_seconds(work, sequence, found)


def _exchange_seconds(work: Work, sequence: int, found: Rates) -> float:
    """What the exchanges of a block add: those of q, k, v and of the result."""
    if sequence == 1:
        return 0.0
    own = work.tokens / sequence * work.dim * _EXCHANGED
    inside = min(sequence, found.per_host)
    # Each device sends an equal part to every other one.
    far = own * (sequence - inside) / sequence / found.network
    near = own * (inside - 1) / sequence / found.link
    whole = 4 * max(near, far)
    return found.exposed * whole + 2 * found.latency


def step_seconds(work: Work, guidance: int, sequence: int, found: Rates) -> float:
    """One step of one video."""
    forward = work.blocks * block_seconds(work, sequence, found)
    return forward * work.branches / guidance


def predictions(found: Rates) -> Iterator[dict[str, Any]]:
    """A flat record per network and number of devices."""
    for work in NETWORKS:
        one = step_seconds(work, 1, 1, found)
        for devices in COUNTS:
            chosen = layout(work, devices)
            if chosen is None:
                continue
            seconds = step_seconds(work, *chosen, found)
            yield {
                "model": work.name,
                "devices": devices,
                "mesh": f"guidance={chosen[0]},sequence={chosen[1]}",
                "step_ms": seconds * 1e3,
                "efficiency": one / (devices * seconds),
                # Tokens of one branch on more than one host.
                "assumed_network": chosen[1] > found.per_host,
            }


def table(found: Rates) -> str:
    """The predictions as a table of Markdown."""
    rows = list(predictions(found))
    lines = [
        "| network | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in COUNTS) + " |",
        "| --- |" + " --- |" * len(COUNTS),
    ]
    for work in NETWORKS:
        cells = []
        for devices in COUNTS:
            same = (work.name, devices)
            row = next((r for r in rows if (r["model"], r["devices"]) == same), None)
            if row is None:
                cells.append("-")
                continue
            text = f"{row['step_ms'] / 1e3:.2f} s, {row['efficiency']:.2f}"
            cells.append(f"*{text}*" if row["assumed_network"] else text)
        lines.append(f"| {work.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(measured: Sequence[dict[str, Any]], found: Rates) -> Iterator[str]:
    """A line per measured record without skips: its efficiency and the predicted one.

    Args:
      measured: records of `benchmarks.sampling.mesh`.
      found: rates of one device.
    """
    names = {"5b": 0, "2b": 1, "wan-1.3b": 2, "wan-14b": 3}
    for record in measured:
        plain = "step_ms" in record and not record["skip_fraction"]
        if not plain or record["model"] not in names or "fsdp" in record["mesh"]:
            continue
        work = NETWORKS[names[record["model"]]]
        sizes = dict(part.split("=") for part in record["mesh"].split(","))
        guidance, sequence = (
            int(sizes.get(axis, 1)) for axis in ("guidance", "sequence")
        )
        share = 1.0 if record["guided"] else 0.5
        seconds = share * step_seconds(work, guidance, sequence, found)
        one = share * step_seconds(work, 1, 1, found)
        yield (
            f"{work.name} {record['mesh']}: measured {record['step_ms']:.0f} ms "
            f"(efficiency {record.get('efficiency', math.nan):.3f}), predicted "
            f"{seconds * 1e3:.0f} ms ({one / (record['devices'] * seconds):.3f})"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and the comparison with what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measured", type=Path, help="file of benchmarks.sampling.mesh"
    )
    args = parser.parse_args(argv)
    found = rates()
    print(table(found))
    if args.measured is not None:
        for line in compared(json.loads(args.measured.read_text())["records"], found):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
