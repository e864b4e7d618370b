"""Tables of result pages, made from their records.

`python -m docs.tools.figures` writes them into docs/results-speed.md in the place of
those that have the same header; with `--check` it only says which are not current.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results-speed.md"
RESULTS = ROOT / "benchmarks" / "results"


@cache
def _records(name: str) -> list[dict]:
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)["records"]


def one(name: str, **where: object) -> dict:
    """The one record of a file whose fields have these values.

    Args:
      name: the file below benchmarks/results, as `h200/pipeline_5b`.
      where: values of fields; numbers may differ by 0.02, as a third does from 0.33.

    Raises:
      ValueError: there is none, or more than one.
    """
    found = [
        record
        for record in _records(name)
        if all(_equal(record.get(field), value) for field, value in where.items())
    ]
    if len(found) != 1:
        raise ValueError(
            f"{name}: expected one record with {where}, found {len(found)}"
        )
    return found[0]


def _equal(found: object, wanted: object) -> bool:
    if isinstance(wanted, float) and isinstance(found, (int, float)):
        return abs(found - wanted) < 0.02
    return found == wanted


def table(header: Sequence[str], align: str, rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
      header: cells of the first line.
      align: a letter for each column, `l` or `r`.
      rows: cells of the others.
    """
    marks = ["---:" if letter == "r" else "---" for letter in align]
    lines = [" | ".join(cells) for cells in (header, marks, *rows)]
    return "\n".join(f"| {line} |".replace("|  |", "| |") for line in lines)


def pipeline() -> str:
    rows = []
    for label, name in (
        ("nothing skipped", "h200/pipeline_5b"),
        ("whole steps, {}% skipped", "h200/pipeline_5b_skips"),
    ):
        record = one(name, model="5b")
        label = label.format(round(record["skip_fraction"] * 100))
        rows.append([label, *_parts(record, ("text", "sampling", "vae"))])
    return table(["", "text", "sampling", "VAE", "together"], "lrrrr", rows)


def picture() -> str:
    record = one("h200/pipeline_wan_14b_i2v", model="wan-14b-i2v")
    row = _parts(record, ("text", "picture", "sampling", "vae"))
    return table(["text", "picture", "sampling", "VAE", "together"], "rrrrr", [row])


def _parts(record: dict, names: Sequence[str]) -> list[str]:
    """Seconds of the parts of a run, and of the whole."""
    places = {"sampling": 1}
    parts = [f"{record['part_s'][name]:.{places.get(name, 2)}f}" for name in names]
    return [*parts, f"**{record['end_to_end_s']:.1f}**"]


def autoencoders() -> str:
    header = ["", "ours, s", "peak, GB", "PyTorch eager, s", "peak, GB"]
    networks = (
        (
            "CogVideoX, 49 frames of 480x720 (315 TFLOP)",
            one("h200/vae_cogvideox_groups", program="stacked"),
            one("h200/vae_cogvideox", program="PyTorch, eager"),
        ),
        (
            "Wan 2.1, 81 frames of 480x832 (275 TFLOP)",
            one("h200/vae_wan", program="chunk 1"),
            one("h200/vae_wan", program="PyTorch, eager"),
        ),
    )
    rows = [
        [
            label,
            f"**{ours['decode_s']:.2f}**",
            f"{ours['peak_bytes'] / 1e9:.1f}",
            f"{theirs['decode_s']:.2f}",
            f"{theirs['peak_bytes'] / 1e9:.1f}",
        ]
        for label, ours, theirs in networks
    ]
    return table(header, "lrrrr", rows)


def chosen_blocks() -> str:
    new, old = "h200/sampling_sparse_5b_parts", "h200/sampling_sparse_5b"
    means = "int8, 8-bit attention, sparse"
    header = [
        "8-bit attention",
        "nothing skipped",
        "a third of the blocks skipped",
        "half",
    ]
    dense = "int8, 8-bit attention, whole steps"
    first = _factor(old, dense, 1.0, 0.0)
    third = _factor(old, dense, 1.0, 0.33, bold=True)
    rows = [["dense, whole steps *", first, third, ""]]
    for label, name, program, density, bold in (
        ("{}% of the key blocks, others by their means", new, means, 0.5, 2),
        ("{}%, others dropped *", old, f"{means}, dropped", 0.51, 0),
        ("{}%, others by their means", new, means, 0.36, 0),
        ("{}%, others dropped *", old, f"{means}, dropped", 0.35, 0),
    ):
        share = one(name, program=program, density=density, skip_fraction=0.0)
        cells = [
            _factor(name, program, density, skips, bold=index < bold)
            for index, skips in enumerate((0.0, 0.33, 0.5))
        ]
        rows.append([label.format(round(share["density"] * 100)), *cells])
    return table(header, "lrrr", rows)


def _factor(
    name: str, program: str, density: float, skips: float, *, bold: bool = False
) -> str:
    """Milliseconds per step, and the factor over bf16 in the same run."""
    base = one(name, program="bf16")
    record = one(name, program=program, density=density, skip_fraction=skips)
    mark = "**" if bold else ""
    factor = f"{base['step_ms'] / record['step_ms']:.2f}"
    return f"{record['step_ms']:.0f} ({mark}{factor}{mark})"


def two_devices() -> str:
    name, one_device = "h200/sampling_mesh", "guidance=1,sequence=1"
    both = _on_two(name, "guidance=2")
    split = _on_two(name, "fsdp=2")
    peaks = " -> ".join(f"{r['peak_bytes'] / 1e9:.2f}" for r in (both[0], split[0]))
    rows = []
    for label, mesh, guided, mark in (
        ("both branches, `guidance=2`", "guidance=2", True, "**"),
        (
            f"both branches, `fsdp=2` (half of the weights on each: {peaks} GB peak)",
            "fsdp=2",
            True,
            "**",
        ),
        ("one branch, `sequence=2`", "sequence=2", False, ""),
    ):
        alone = one(name, model="5b", mesh=one_device, guided=guided, skip_fraction=0.0)
        whole, skipped = _on_two(name, mesh)
        rows.append(
            [
                label,
                f"{alone['step_ms']:.0f}",
                f"{whole['step_ms']:.0f}",
                f"{mark}{whole['efficiency']:.2f}{mark}",
                f"{skipped['efficiency']:.2f}",
            ]
        )
    header = ["", "one GPU, ms per step", "two", "efficiency"]
    return table([*header, "half of the steps skipped"], "lrrrr", rows)


def _on_two(name: str, mesh: str) -> tuple[dict, dict]:
    """Nothing skipped, and half of the steps."""
    whole, half = (
        one(name, model="5b", mesh=mesh, skip_fraction=skips) for skips in (0.0, 0.5)
    )
    return whole, half


TABLES: dict[str, Callable[[], str]] = {
    "prompt to pixels": pipeline,
    "picture to pixels": picture,
    "video autoencoders": autoencoders,
    "attention to chosen blocks of keys": chosen_blocks,
    "one video on two H200s": two_devices,
}


def current(text: str, made: str) -> str:
    """A page with a table put in the place of the one that has its header.

    Raises:
      ValueError: the page has no such table, or several.
    """
    lines, header = text.split("\n"), made.split("\n")[0]
    starts = [index for index, line in enumerate(lines) if line == header]
    if len(starts) != 1:
        raise ValueError(f"expected one table with {header}, found {len(starts)}")
    end = starts[0]
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    return "\n".join([*lines[: starts[0]], made, *lines[end:]])


def stale(text: str) -> list[str]:
    """The names of the tables that are not what their records say."""
    return [name for name, make in TABLES.items() if current(text, make()) != text]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.tools.figures")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    text = args.page.read_text(encoding="utf-8")
    names = stale(text)
    print("\n".join(f"not current: {name}" for name in names) or "all current")
    if args.check:
        return 1 if names else 0
    for make in TABLES.values():
        text = current(text, make())
    args.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
