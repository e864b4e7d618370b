"""Plots of the correlation that DMPQ rests on."""

import os

import numpy as np

from sixbit_jax.calibration.fit import PredictorFit
from sixbit_jax.calibration.recording import Recording


def plot_fit(
    recording: Recording,
    fit: PredictorFit,
    path: str | os.PathLike,
    *,
    max_points: int = 4000,
) -> None:
    """Draws gamma[t-1] against E_rel[t], one panel per site, blocks by colour.

    Args:
      recording: the runs that were fitted.
      fit: its lines are drawn over the range of each block.
      path: image file; the suffix chooses the format (png, svg, pdf).
      max_points: points per panel; more are thinned evenly.
    """
    # Imported here: calibration itself does not need a plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    recording = recording.checked()
    sites, known = fit.predictor.sites, recording.known_gamma()
    blocks = known.shape[-1]
    number = np.broadcast_to(np.arange(blocks), known.shape)
    figure = Figure(figsize=(4.2 * len(sites), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sites), squeeze=False)[0]
    points = None
    for s, (panel, site) in enumerate(zip(panels, sites, strict=True)):
        error = recording.error[..., s]
        valid = np.isfinite(known) & np.isfinite(error) & ~recording.skip
        x, y, colour = known[valid], error[valid], number[valid]
        thin = slice(None, None, max(1, -(-len(x) // max_points)))
        points = panel.scatter(
            x[thin], y[thin], c=colour[thin], s=6, alpha=0.6, vmin=0, vmax=blocks - 1
        )
        there = fit.pairs[:, s] > 0
        for block in np.flatnonzero(there):
            inside = x[colour == block]
            ends = np.array([inside.min(), inside.max()])
            line = fit.predictor.alpha[block, s] * ends + fit.predictor.beta[block, s]
            shade = points.cmap(points.norm(block))
            panel.plot(ends, line, color=shade, linewidth=1)
        panel.set_title(
            f"{site}: r = {fit.site_pearson[s]:.2f}, within blocks "
            f"{np.median(fit.pearson[there, s]):.2f}",
            fontsize=10,
        )
        panel.set_xlabel("gamma of the step before")
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("relative L1 error in NVFP4")
    if points is not None:
        figure.colorbar(points, ax=panels, label="block")
    figure.savefig(path, dpi=120)
