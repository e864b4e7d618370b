"""Q-VDiT in a directory: a session that goes on when cut, and the packed model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.checkpoint import Header, foreign, save
from sixbit_jax.methods.q_vdit.method import QVDiTOptions, q_vdit_method
from sixbit_jax.methods.q_vdit.pack import packed_model
from sixbit_jax.methods.q_vdit.tune import prepare, rates_for, token_layout
from sixbit_jax.tuning.loop import TuneOptions, Tuner, TuneState
from sixbit_jax.tuning.session import Losses, Session, plot_losses
from sixbit_jax.tuning.trajectories import Trajectories

MODEL = "model"
"""The folder of the packed model."""


@dataclass(frozen=True)
class QVDiTRun:
    """What a run is.

    Attributes:
      options: bits and scope.
      loop: numbers of the loop.
      learning_rates: by group, in the place of `tune.LEARNING_RATES`.
      checkpoint_every: iterations between checkpoints.

    Raises:
      ValueError: a learning rate for a group that there is not.
    """

    options: QVDiTOptions = field(default_factory=QVDiTOptions)
    loop: TuneOptions = field(default_factory=TuneOptions)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        rates = rates_for(self.options, self.learning_rates)
        object.__setattr__(self, "learning_rates", rates)

    def note(self) -> dict[str, Any]:
        """What distinguishes the run, for its checkpoints."""
        return {
            "q_vdit": asdict(self.options),
            "learning_rates": dict(self.learning_rates),
            "loop": asdict(self.loop),
        }

    def session(self, folder: Path, model: Any, data: Trajectories) -> Session:
        """The run in a directory, ready to start or to go on.

        Args:
          folder: holds `checkpoints` and `losses.npz`.
          model: the network in full precision.
          data: its trajectories.
        """
        start, text_rows = prepare(model, data, self.options, dtype=self.loop.dtype)
        tuner = Tuner(model, q_vdit_method(text_rows=text_rows), self.loop)
        return Session(
            folder,
            tuner,
            start,
            dict(self.learning_rates),
            self.note(),
            self.checkpoint_every,
        )

    def write(
        self,
        session: Session,
        model: Any,
        header: Header,
        data: Trajectories,
        state: TuneState,
        losses: Losses,
    ) -> None:
        """Writes the packed model and the plot of the losses.

        Args:
          session: that ran.
          model: the network in full precision.
          header: the header of its checkpoint.
          data: its trajectories.
          state: the last one.
          losses: the losses of all iterations.
        """
        _, text_rows = token_layout(model, data)
        packed = packed_model(
            model,
            state.trainable,
            session.start.frozen,
            self.options,
            text_rows=text_rows,
        )
        target = session.folder / MODEL
        with files.replaced_directory(target, foreign=foreign) as made:
            save(
                packed,
                made,
                scheduler=header.scheduler,
                quantization={"method": "q_vdit", **asdict(self.options)},
                source=header.source,
            )
        with files.replaced_file(session.folder / "losses.png") as partial:
            plot_losses(losses, partial)


__all__ = ["MODEL", "QVDiTRun"]
