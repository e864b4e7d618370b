"""The quality results as a Markdown table and plots.

python -m benchmarks.quality.report FILE.json [--plots DIR]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sixbit_jax.benchmark import records

_COLUMNS = (
    ("method", "method", None),
    ("psnr_db", "PSNR, dB", 2),
    ("ssim", "SSIM", 4),
    ("latent_rel_l2", "latent rel. L2", 4),
    ("attribute_score", "attributes", 3),
    ("temporal_consistency", "consistency", 4),
    ("activation_bits", "act. bits", 2),
    ("effective_bits", "eff. bits", 2),
    ("skip_fraction", "skips", 3),
    ("weight_bytes", "weights, MB", 2),
)


def _cell(record: dict[str, Any], name: str, digits: int | None) -> str:
    value = record.get(name)
    if value is None:
        return "–"
    if digits is None:
        return str(value)
    if name == "weight_bytes":
        value /= 1e6
    interval = record.get(f"{name.removesuffix('_db')}_ci95")
    text = f"{value:.{digits}f}"
    if interval and name not in ("activation_bits", "effective_bits", "skip_fraction"):
        text += f" ± {(interval[1] - interval[0]) / 2:.{digits}f}"
    return text


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of methods, the paired differences and the correlations.

    Half widths behind ± are those of 95% intervals.
    """
    quality = [r for r in rows if r["kind"] == "quality"]
    text = _table(
        [title for _, title, _ in _COLUMNS],
        [[_cell(r, name, digits) for name, _, digits in _COLUMNS] for r in quality],
    )
    compared = [r for r in rows if r["kind"] == "comparison"]
    if compared:
        body = []
        for r in compared:
            if r["difference"] is None:
                continue
            low, high = r["difference_ci95"]
            verdict = "yes" if r["outside"] else "no"
            body.append(
                [
                    f"{r['method']} - {r['against']}",
                    r["quantity"],
                    f"{r['difference']:+.3f}",
                    f"[{low:+.3f}, {high:+.3f}]",
                    verdict,
                ]
            )
        columns = ["difference", "of", "mean", "paired 95% interval", "excludes 0"]
        text += "\n" + _table(columns, body)
    related = [r for r in rows if r["kind"] == "correlation"]
    if related:
        names = ("r_pooled", "r_within_block", "r2_within_block", "r_within_step")
        body = [
            [f"{r['signal']}, {r['site']}", *(_cell(r, n, 3) for n in names)]
            for r in related
        ]
        columns = ["signal of t-1, site", "r pooled", "r in block", "R² in block"]
        text += "\n" + _table([*columns, "r in block and step"], body)
    return text


def one_line(row: dict[str, Any]) -> str:
    """A row of the table for a log."""
    cells = [f"{title} {_cell(row, n, d)}" for n, title, d in _COLUMNS[1:9]]
    return "  " + ", ".join(cells)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * (len(columns) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], directory: Path) -> list[Path]:
    """PSNR of every row with its 95% interval, one file per kind of weights.

    One line per method, so that names do not cover each other; quantized and plain
    weights apart, because their PSNR differ by 20 dB. Needs matplotlib.

    Returns:
      The files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    shown = [r for r in rows if r["kind"] == "quality" and r["psnr_db"] is not None]
    made, colours = [], Normalize(4, 16)
    for name, title, quantized in (
        ("psnr_quantized", "NVFP4 weights", True),
        ("psnr_full_precision", "weights as they are", False),
    ):
        chosen = [r for r in shown if (r["weight_bits"] < 8) == quantized]
        if not chosen:
            continue
        chosen.sort(key=lambda r: r["psnr_db"])
        figure = Figure(figsize=(8, 1.2 + 0.28 * len(chosen)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, r in enumerate(chosen):
            low, high = r["psnr_ci95"] or (r["psnr_db"], r["psnr_db"])
            axes.plot([low, high], [place, place], color="0.6", lw=2)
        for marker, skipping in (("o", False), ("s", True)):
            places = [
                i for i, r in enumerate(chosen) if (r["skip_fraction"] > 0) == skipping
            ]
            axes.scatter(
                [chosen[i]["psnr_db"] for i in places],
                places,
                c=[chosen[i]["effective_bits"] for i in places],
                norm=colours,
                marker=marker,
                zorder=3,
            )
        axes.set_yticks(
            range(len(chosen)),
            [f"{r['method']}  {r['activation_bits']:.1f} bits" for r in chosen],
        )
        axes.set_xlabel(
            "PSNR against full precision, dB (95% interval); squares skip blocks"
        )
        axes.set_title(title, loc="left")
        axes.grid(axis="x", alpha=0.3)
        figure.colorbar(ScalarMappable(colours), ax=axes, label="effective bits")
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=120)
        made.append(path)
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--plots", type=Path, help="directory for PNG files")
    args = parser.parse_args()
    rows = records.read(args.file)["records"]
    print(markdown(rows))
    if args.plots is not None:
        for path in plot(rows, args.plots):
            print(path)


if __name__ == "__main__":
    main()
