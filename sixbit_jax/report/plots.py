"""Figures of a trace and of a comparison; matplotlib without pyplot (no globals)."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from sixbit_jax.measured import known
from sixbit_jax.routes import Route
from sixbit_jax.sampling.trace import Trace

# Okabe and Ito's palette: told apart with every common colour vision deficiency. A
# plan holds few routes; those of one family share a hue, and the legend names them.
ROUTE_COLOURS = {
    "NVFP4": "#56B4E9",
    "INT8": "#E69F00",
    "BF16": "#8C2D7B",
    "INT4": "#0072B2",
    "INT6": "#009E73",
    "ARQ4": "#1B5E8C",
    "ARQ8": "#D55E00",
    "ARQ4_CHANNEL": "#7FA8D1",
    "ARQ8_CHANNEL": "#F0A37A",
    "ARQ_NVFP4": "#B7E0F7",
}
SKIPPED_COLOUR = "#E4E4E4"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_SKIPPED = len(Route)
_BRANCHES = ("conditional", "unconditional")


def png(figure: Figure, *, dpi: int = 130) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def plain(text: str) -> str:
    """Text as it is: matplotlib would read what stands between dollars as formulas."""
    return text.replace("$", r"\$")


def branch_names(count: int) -> tuple[str, ...]:
    """Names of guidance branches; a single one may be batched guidance."""
    return _BRANCHES if count == len(_BRANCHES) else ("all branches",)


def route_cells(trace: Trace) -> Int[np.ndarray, "branches rows steps"]:
    """What each site did: a `Route`, or `len(Route)` where its block was skipped.

    Rows are the sites of block 0, then those of block 1, and so on.
    """
    skip = np.asarray(trace.skip)[..., None]
    cells = np.where(skip, _SKIPPED, np.asarray(trace.route))
    steps, branches, blocks, sites = cells.shape
    return np.moveaxis(cells.reshape(steps, branches, blocks * sites), 0, -1)


def route_map(trace: Trace, sites: Sequence[str], *, title: str = "") -> Figure:
    """Heat map of routes and skips, blocks by steps, one panel per guidance branch."""
    cells = route_cells(trace)
    branches, rows, steps = cells.shape
    per_block = len(sites)
    blocks = rows // per_block
    height = min(0.09 * rows, 5.0) + 0.6
    figure = Figure(
        figsize=(min(3.4 + 0.16 * steps, 13.0), branches * height + 1.15),
        layout="constrained",
    )
    axes = figure.subplots(branches, 1, squeeze=False, sharex=True)[:, 0]
    colours = ListedColormap([*ROUTE_COLOURS.values(), SKIPPED_COLOUR])
    if title:
        axes[0].annotate(
            plain(title), (0, 1), (0, 20), "axes fraction", "offset points", fontsize=11
        )
    for axis, values, name in zip(axes, cells, branch_names(branches), strict=True):
        axis.imshow(
            values,
            cmap=colours,
            vmin=-0.5,
            vmax=_SKIPPED + 0.5,
            aspect="auto",
            interpolation="nearest",
        )
        for edge in range(1, blocks):
            axis.axhline(edge * per_block - 0.5, color="white", linewidth=1.2)
        for edge in range(1, steps):
            axis.axvline(edge - 0.5, color="white", linewidth=0.3)
        stride = max(1, blocks // 12)
        shown = np.arange(0, blocks, stride)
        axis.set_yticks(shown * per_block + (per_block - 1) / 2, shown)
        axis.tick_params(length=0)
        axis.set_ylabel("block")
        axis.set_title(name, fontsize=9, loc="left")
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel(
        f"step\nrows of a block, from the top: {', '.join(sites)}", fontsize=9
    )
    present = set(np.unique(cells))
    handles = [
        Patch(facecolor=colour, label=f"{name} ({Route[name].bits} bits)")
        for name, colour in ROUTE_COLOURS.items()
        if Route[name] in present
    ]
    if _SKIPPED in present:
        handles.append(Patch(facecolor=SKIPPED_COLOUR, label="skipped (cached delta)"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    return figure


def density_map(trace: Trace, *, title: str = "") -> Figure:
    """Heat map of the keys that were computed, blocks by steps, a panel per branch."""
    skip = np.asarray(trace.skip)
    values = np.where(skip, np.nan, np.asarray(trace.attention_density))
    steps, branches, blocks = values.shape
    figure = Figure(
        figsize=(
            min(4.0 + 0.16 * steps, 13.0),
            branches * (min(0.16 * blocks, 5.0) + 0.6) + 0.75,
        ),
        layout="constrained",
    )
    axes = figure.subplots(branches, 1, squeeze=False, sharex=True)[:, 0]
    colours = colormaps["viridis"].with_extremes(bad=SKIPPED_COLOUR)
    image = None
    panels = zip(axes, np.moveaxis(values, 0, -1), branch_names(branches), strict=True)
    for axis, cells, name in panels:
        image = axis.imshow(
            cells,
            cmap=colours,
            vmin=0.0,
            vmax=1.0,
            aspect="auto",
            interpolation="nearest",
        )
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(length=0)
        axis.set_ylabel("block")
        axis.set_title(name, fontsize=9, loc="left")
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("step", fontsize=9)
    assert image is not None
    figure.colorbar(image, ax=axes, label="share of the blocks of keys", pad=0.01)
    if skip.any():
        handle = Patch(facecolor=SKIPPED_COLOUR, label="skipped (cached delta)")
        figure.legend(
            handles=[handle], loc="outside lower center", frameon=False, fontsize=9
        )
    _title(figure, title)
    return figure


def signal_curves(
    trace: Trace, sites: Sequence[str], *, title: str = "", branch: int = 0
) -> Figure:
    """What the policies see, over the steps, one line per block.

    Panels: gamma, the change of delta, and the NVFP4 error of each site where the run
    recorded it. Steps in which a block was skipped have no point.
    """
    computed = ~np.asarray(trace.skip)[:, branch]
    gamma = np.where(computed, np.asarray(trace.gamma)[:, branch], np.nan)
    change = known(np.asarray(trace.delta_change)[:, branch])
    change = np.where(computed, change, np.nan)
    error = known(np.asarray(trace.error)[:, branch])
    panels: list[tuple[str, Float[np.ndarray, "steps blocks"]]] = [
        ("gamma: relative L1 change of the block", gamma),
        ("change of delta since the last computed step", change),
    ]
    if np.isfinite(error).any():
        panels += [
            (f"NVFP4 error of {site}", error[..., i]) for i, site in enumerate(sites)
        ]
    # A run without a delta cache measures no change of delta.
    panels = [panel for panel in panels if (np.nan_to_num(panel[1]) > 0).any()]
    if not panels:
        raise ValueError("signal curves: expected a trace with stats, found only zeros")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(
        figsize=(5.4 * columns + 0.7, 3.1 * rows + 0.4), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    blocks = gamma.shape[1]
    colours = _block_colours()
    for axis, (name, values) in zip(axes.flat, panels, strict=False):
        for block in range(blocks):
            _line(axis, values[:, block], colours(block / max(blocks - 1, 1)))
        _scale(axis, values)
        axis.set_title(plain(name), fontsize=9, loc="left")
        axis.set_xlabel("step")
        _tidy(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    _block_bar(figure, axes, blocks)
    _title(figure, title)
    return figure


def error_curves(
    predicted: Float[np.ndarray, "steps blocks sites"],
    threshold: float | Mapping[str, float],
    measured: Float[np.ndarray, "steps blocks sites"],
    sites: Sequence[str],
    *,
    title: str = "",
    ylabel: str = "relative L1 error",
) -> Figure:
    """What DMPQ decides by: predicted NVFP4 errors and the threshold, per site.

    Args:
      predicted: alpha * gamma + beta, drawn as lines; NaN where there is no gamma.
      threshold: below it a site runs in NVFP4; one number, or one per site.
      measured: recorded errors, drawn as dots; NaN where they were not recorded.
      sites: names of the panels.
      title: above all panels.
      ylabel: unit of the values.
    """
    columns = min(2, len(sites))
    rows = -(-len(sites) // columns)
    figure = Figure(
        figsize=(5.4 * columns + 0.7, 2.7 * rows + 0.6), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    blocks, colours = predicted.shape[1], _block_colours()
    for axis, site, lines, dots in zip(
        axes.flat,
        sites,
        np.moveaxis(predicted, -1, 0),
        np.moveaxis(measured, -1, 0),
        strict=False,
    ):
        for block in range(blocks):
            colour = colours(block / max(blocks - 1, 1))
            axis.plot(lines[:, block], color=colour, linewidth=1.1)
            axis.plot(dots[:, block], color=colour, linestyle="none", marker=".", ms=4)
        level = threshold[site] if isinstance(threshold, Mapping) else threshold
        axis.axhline(level, color="#D55E00", linestyle="--", linewidth=1.4)
        axis.set_title(plain(site), fontsize=9, loc="left")
        axis.set_xlabel("step")
        axis.set_ylabel(plain(ylabel))
        _tidy(axis)
    for axis in axes.flat[len(sites) :]:
        axis.set_visible(False)
    _block_bar(figure, axes, blocks)
    shade = colours(0.5)
    handles = [
        Line2D([], [], color="#D55E00", linestyle="--", label="threshold: INT8 above"),
        Line2D([], [], color=shade, label="predicted from the step before"),
    ]
    if np.isfinite(measured).any():
        dot = Line2D([], [], color=shade, linestyle="none", marker=".")
        dot.set_label("measured")
        handles.append(dot)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    _title(figure, title)
    return figure


def frame_curves(
    values: Sequence[Float[np.ndarray, "frames"]],
    labels: Sequence[str],
    *,
    ylabel: str,
    title: str = "",
) -> Figure:
    """One line per video over its frames."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (line, label) in enumerate(zip(values, labels, strict=True)):
        axis.plot(
            line,
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            label=plain(label),
        )
    axis.set_xlabel("frame")
    axis.set_ylabel(plain(ylabel))
    axis.set_title(plain(title), fontsize=11, loc="left")
    _tidy(axis)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _block_colours() -> ListedColormap:
    # Viridis survives colour vision deficiencies; its yellow end vanishes on white.
    return ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.88, 256)))


def _block_bar(figure: Figure, axes: np.ndarray, blocks: int) -> None:
    """The key of the blocks' colours, to the right of all panels."""
    norm = BoundaryNorm(np.arange(blocks + 1) - 0.5, 256)
    scale = ScalarMappable(norm, _block_colours())
    bar = figure.colorbar(
        scale, ax=axes, label="block", aspect=18 * len(axes), pad=0.01
    )
    bar.set_ticks(range(0, blocks, max(1, blocks // 8)))


def _title(figure: Figure, text: str) -> None:
    if text:
        text = textwrap.fill(text, round(12 * figure.get_figwidth()))
        figure.suptitle(plain(text), fontsize=11, x=0.01, ha="left")


def _line(axis: Axes, values: np.ndarray, colour: tuple[float, ...]) -> None:
    """A line over the finite values, with a dot at each measured step."""
    steps = np.flatnonzero(np.isfinite(values) & (values > 0))
    axis.plot(steps, values[steps], color=colour, linewidth=1.1, marker=".", ms=3.5)


def _scale(axis: Axes, values: np.ndarray) -> None:
    """Logarithmic where the values span much, from 0 where they do not."""
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.max() < 5 * positive.min():
        axis.set_ylim(0, 1.08 * positive.max())
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _tidy(axis: Axes) -> None:
    axis.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
