"""A tuning run in a directory: trajectories, checkpoints, losses; goes on when cut."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sixbit_jax import files
from sixbit_jax.tuning.checkpoints import Checkpoints
from sixbit_jax.tuning.loop import Tuner, TuneState
from sixbit_jax.tuning.method import Start
from sixbit_jax.tuning.trajectories import Trajectories

Losses = dict[str, np.ndarray]


def cached_trajectories(
    folder: Path, note: dict[str, Any], make: Callable[[], Trajectories]
) -> Trajectories:
    """Trajectories of a directory, recorded first if there are none.

    Args:
      folder: its subdirectory `trajectories` holds them.
      note: what made them; other ones are refused.
      make: records them.

    Raises:
      ValueError: the directory holds trajectories that were recorded otherwise.
    """
    path = folder / "trajectories"
    if not path.exists():
        make().save(path, note)
    return Trajectories.load(path, note)


@dataclass(frozen=True)
class Session:
    """One run and its directory.

    Attributes:
      folder: holds `checkpoints` and `losses.npz`.
      tuner: the compiled program.
      start: what the method starts from.
      learning_rates: by group.
      note: what the run is; a directory of another run is refused.
      every: iterations between checkpoints, rounded up to whole calls.
    """

    folder: Path
    tuner: Tuner
    start: Start
    learning_rates: dict[str, float]
    note: dict[str, Any]
    every: int = 200

    def run(
        self,
        data: Trajectories,
        *,
        on_progress: Callable[[int, Losses], None] | None = None,
    ) -> tuple[TuneState, Losses]:
        """Tunes to the end, from the newest checkpoint if there is one.

        Args:
          data: the teacher's trajectories.
          on_progress: called with the iterations done and their losses so far.

        Returns:
          The last state, and the losses of all iterations, of earlier runs too.

        Raises:
          CheckpointError: the checkpoints are of another run, or damaged.
          FloatingPointError: a loss is not finite.
        """
        kept = Checkpoints(self.folder / "checkpoints", self.note)
        state = self.tuner.init(self.start, self.learning_rates)
        found = kept.restore(state)
        losses: Losses = {}
        if found is not None:
            state = found
            losses = self._read(int(found.iteration))
        saved = int(state.iteration)
        if on_progress is not None and saved:
            on_progress(saved, losses)

        def after_call(state: TuneState, new: Losses) -> None:
            nonlocal losses, saved
            losses = {
                name: np.concatenate([losses.get(name, values[:0]), values])
                for name, values in new.items()
            }
            done = int(state.iteration)
            if done - saved >= self.every or done == self.tuner.options.iterations:
                # First the losses: a checkpoint never lacks those that led to it.
                self._write(losses)
                kept.save(done, state)
                saved = done
            if on_progress is not None:
                on_progress(done, losses)

        state, _ = self.tuner.run(state, self.start.frozen, data, after_call=after_call)
        return state, losses

    def _write(self, losses: Losses) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.replaced_file(self.folder / "losses.npz") as partial:
            np.savez(partial, **losses)  # pyrefly: ignore[bad-argument-type]

    def _read(self, iterations: int) -> Losses:
        with np.load(self.folder / "losses.npz") as stored:
            return {name: stored[name][:iterations] for name in stored.files}


def plot_losses(losses: Losses, path: str | os.PathLike) -> None:
    """Draws every loss over the iterations, thin, with a running mean over it.

    Args:
      losses: by name; gradient norms are left out.
      path: image file; the suffix chooses the format (png, svg, pdf).

    Raises:
      ValueError: there are no losses.
    """
    # Imported here: tuning itself does not need a plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in losses if not name.startswith("gradient_")]
    if not names:
        raise ValueError("plot: expected losses, found none")
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        values = losses[name]
        window = max(1, len(values) // 50)
        mean = np.convolve(values, np.ones(window) / window, "valid")
        panel.plot(values, linewidth=0.5, alpha=0.35)
        panel.plot(np.arange(len(mean)) + window - 1, mean, linewidth=1.6)
        if values.min() > 0:
            panel.set_yscale("log")
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("iteration")
        panel.grid(alpha=0.2)
    figure.savefig(path, dpi=120)


__all__ = ["Losses", "Session", "cached_trajectories", "plot_losses"]
