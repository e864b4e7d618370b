"""Writes the report of a comparison: videos, pictures, JSON and one HTML page."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sixbit_jax.calibration import Recording
from sixbit_jax.calibration.decisions import decisions_of
from sixbit_jax.report import html, player, plots, video
from sixbit_jax.report.comparison import (
    Comparison,
    frame_psnr,
    is_pixels,
    table_rows,
)
from sixbit_jax.report.runs import Run
from sixbit_jax.routes import Route

FPS = 8
# Of a file name that holds more than this; file systems take 255 bytes.
_LONGEST = 100


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST] or "run"


def slugs(names: Sequence[str]) -> list[str]:
    """Parts of file names, one for each name, no two of them equal."""
    found: list[str] = []
    for name in names:
        part, number = slug(name), 2
        while part in found:
            part, number = f"{slug(name)}-{number}", number + 1
        found.append(part)
    return found


def write_report(
    directory: Path,
    comparison: Comparison,
    *,
    title: str,
    facts: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> list[str]:
    """Writes all files of a report into an existing, empty directory.

    Args:
      directory: where to.
      comparison: the runs; the first is the reference.
      title: heading of the page.
      facts: settings and versions, JSON values; become part of report.json.
      notes: sentences that a reader of the table must know.

    Returns:
      Names of the files, in the order of their importance.
    """
    page = html.Page(title)
    names = ["report.html", "report.json"]
    page.table(*table_rows(comparison))
    for note in notes:
        page.paragraph(note)
    if is_pixels(comparison.reference.latents):
        names += _write_videos(directory, comparison, page)
    names += _write_plots(directory, comparison, page)
    for run, part in zip(comparison.runs, _parts(comparison), strict=True):
        name = f"traces_{part}.npz"
        traces: dict[str, Any] = _traces(run)
        np.savez_compressed(directory / name, **traces)
        names.append(name)
    page.facts("Settings", facts)
    report = {
        **facts,
        "prompts": list(comparison.prompts),
        "records": comparison.records,
        "files": names,
    }
    text = json.dumps(_json_value(report), indent=1, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    (directory / "report.html").write_text(page.render(), encoding="utf-8")
    return names


def _parts(comparison: Comparison) -> list[str]:
    """The part of a file name that tells each run from the others."""
    return slugs([run.name for run in comparison.runs])


def _traces(run: Run) -> dict[str, np.ndarray]:
    """The traces of all prompts with a leading prompt axis."""
    fields = run.traces[0]._fields
    return {
        name: np.stack([getattr(trace, name) for trace in run.traces])
        for name in fields
    }


def _json_value(value: Any) -> Any:
    """The value with infinite and undefined numbers as null, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_videos(
    directory: Path, comparison: Comparison, page: html.Page
) -> list[str]:
    pixels = [video.to_pixels(run.latents) for run in comparison.runs]
    names = ["contact_sheet.png", "videos.gif"]
    several = len(comparison.runs) > 1
    rows = [
        (prompt, run.name if several else "", frames[number])
        for number, prompt in enumerate(comparison.prompts)
        for run, frames in zip(comparison.runs, pixels, strict=True)
    ]
    height = pixels[0].shape[2]
    sheet = video.contact_sheet(rows, scale=_magnified(height, 96))
    sheet.save(directory / "contact_sheet.png")
    grid = animation(comparison, pixels, scale=_magnified(height, 160))
    video.write_gif(directory / "videos.gif", grid, fps=FPS, scale=1)
    page.heading("Videos")
    _add_players(comparison, pixels, page)
    page.picture((directory / "videos.gif").read_bytes(), "gif", "All videos")
    page.picture((directory / "contact_sheet.png").read_bytes(), "png", "All frames")
    for part, frames in zip(_parts(comparison), pixels, strict=True):
        for number in range(len(comparison.prompts)):
            stem = f"{number + 1}_{part}"
            options = {"fps": FPS, "scale": _magnified(height, 256)}
            video.write_gif(directory / f"{stem}.gif", frames[number], **options)
            names.append(f"{stem}.gif")
            if video.write_mp4(directory / f"{stem}.mp4", frames[number], **options):
                names.append(f"{stem}.mp4")
    return names


def _magnified(height: int, wanted: int) -> int:
    """The whole number of times that frames are enlarged to about `wanted` rows."""
    return max(1, wanted // height)


def _add_players(
    comparison: Comparison, pixels: list[np.ndarray], page: html.Page
) -> None:
    """A player per prompt, with the routes of the conditional branch."""
    for number, prompt in enumerate(comparison.prompts):
        shown = [
            player.Shown(
                run.name,
                frames[number],
                plots.route_cells(run.traces[number])[0] if index else None,
            )
            for index, (run, frames) in enumerate(
                zip(comparison.runs, pixels, strict=True)
            )
        ]
        page.player(
            prompt,
            shown,
            fps=FPS,
            colours=[
                *(plots.ROUTE_COLOURS[route.name] for route in Route),
                plots.SKIPPED_COLOUR,
            ],
            names=[*(route.name for route in Route), "skipped"],
        )


def animation(
    comparison: Comparison, pixels: list[np.ndarray], *, scale: int = 5, gap: int = 10
) -> video.Frames:
    """All videos in one: a row per configuration, a column per prompt, labelled.

    Args:
      comparison: the runs.
      pixels: RGB bytes [prompts, frames, height, width, 3] of each run.
      scale: nearest-neighbour magnification.
      gap: pixels between videos.
    """
    prompts, frames, height, width, _ = pixels[0].shape
    height, width = height * scale, width * scale
    label, small = video.font(13), video.font(11)
    left = max(round(label.getlength(run.name)) for run in comparison.runs) + 2 * gap
    captions = [_wrap(text, small, width) for text in comparison.prompts]
    top = gap + 15 * max(text.count("\n") + 1 for text in captions) + 4
    size = (
        left + prompts * (width + gap),
        top + len(pixels) * (height + gap),
    )
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for column, text in enumerate(captions):
        x = left + column * (width + gap)
        draw.multiline_text((x, gap), text, fill="#202020", font=small, spacing=2)
    for row, run in enumerate(comparison.runs):
        y = top + row * (height + gap) + height // 2
        draw.text((gap, y), run.name, fill="#202020", font=label, anchor="lm")
    result = np.repeat(np.asarray(page)[None], frames, axis=0)
    for row, videos in enumerate(pixels):
        for column, clip in enumerate(videos):
            y, x = top + row * (height + gap), left + column * (width + gap)
            result[:, y : y + height, x : x + width] = video.upscale(clip, scale)
    return result


def _wrap(text: str, font: Any, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _error_figure(run: Run, prompt: str) -> Any:
    """Predicted errors of the first prompt's conditional branch, where DMPQ ran."""
    file = run.configuration.policy_file
    if file is None or file.threshold is None:
        return None
    recording = Recording.from_traces(run.traces[:1])
    values = decisions_of(recording, file, run.grid)
    if values is None:
        return None
    plain = file.importance is None and not file.residual
    return plots.error_curves(
        values.predicted[0, :, 0],
        file.threshold,
        values.measured[0, :, 0],
        run.grid.sites,
        title=f"{run.name}: {prompt} (conditional branch)",
        ylabel="relative L1 error" if plain else "weighted error",
    )


def _add_density_maps(add: Any, comparison: Comparison, page: html.Page) -> None:
    """The heat maps of runs with sparse attention."""
    for run, part in zip(comparison.runs, _parts(comparison), strict=True):
        if run.cost()["density"] == 1.0:
            continue
        page.heading(f"What {run.name} attended to")
        for number, prompt in enumerate(comparison.prompts):
            add(
                f"density_{number + 1}_{part}.png",
                plots.density_map(run.traces[number], title=prompt),
                "Share of the blocks of keys that attention computed exactly",
            )


def _write_plots(directory: Path, comparison: Comparison, page: html.Page) -> list[str]:
    names = []

    def add(name: str, figure: Any, caption: str) -> None:
        data = plots.png(figure)
        (directory / name).write_bytes(data)
        page.picture(data, "png", caption)
        names.append(name)

    parts = _parts(comparison)
    for run, part in zip(comparison.runs, parts, strict=True):
        if (run.cost()["share_bf16"], run.cost()["skip_fraction"]) == (1.0, 0.0):
            continue
        page.heading(f"What {run.name} decided")
        for number, prompt in enumerate(comparison.prompts):
            add(
                f"routes_{number + 1}_{part}.png",
                plots.route_map(run.traces[number], run.grid.sites, title=prompt),
                "Route of every site in every step, and the blocks that were skipped",
            )
    _add_density_maps(add, comparison, page)
    page.heading("What the policies see")
    for run, part in zip(comparison.runs, parts, strict=True):
        add(
            f"signals_{part}.png",
            plots.signal_curves(
                run.traces[0],
                run.grid.sites,
                title=f"{run.name}: {comparison.prompts[0]} (conditional branch)",
            ),
            "A point for each step in which the block was computed",
        )
        figure = _error_figure(run, comparison.prompts[0])
        if figure is not None:
            add(
                f"errors_{part}.png",
                figure,
                "The error that NVFP4 activations would cause, as DMPQ predicts it. A "
                "site runs in INT8 above the threshold; in any case in step 0, and "
                "after a skip or in the last steps if the policy asks for it",
            )
    if is_pixels(comparison.reference.latents) and len(comparison.runs) > 1:
        page.heading("Distance from the reference")
        for run, part in zip(comparison.runs[1:], parts[1:], strict=True):
            values = frame_psnr(run, comparison.reference)
            if not np.isfinite(values).any():
                continue
            add(
                f"psnr_{part}.png",
                plots.frame_curves(
                    list(values),
                    comparison.prompts,
                    ylabel="PSNR (dB)",
                    title=f"{run.name} against {comparison.reference.name}",
                ),
                "PSNR of every frame",
            )
    return names
