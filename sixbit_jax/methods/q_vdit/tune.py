"""Q-VDiT from a model to a packed one: prepared, tuned, packed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.formats import UniformArray
from sixbit_jax.formats.uniform_grid import UniformGrid
from sixbit_jax.methods.q_vdit.factors import frame_factors
from sixbit_jax.methods.q_vdit.method import QVDiTOptions, q_vdit_method, q_vdit_start
from sixbit_jax.methods.q_vdit.pack import packed_model
from sixbit_jax.nn.fake_quantize import levels_of
from sixbit_jax.quantizers.range_search import search_range
from sixbit_jax.quantizers.storage import changed_weights
from sixbit_jax.tuning.loop import TuneOptions, Tuner
from sixbit_jax.tuning.method import Start
from sixbit_jax.tuning.trajectories import Trajectories

LEARNING_RATES = {
    "step_sizes": 1e-4,
    "estimator": 3e-3,
    "factors": 1e-3,
    "inner": 1e-3,
}
"""Ours. The paper's are 1e-6 for step sizes and 1e-5 for adapters, over 5,000 to
15,000 iterations; these are for hundreds to a few thousand."""
CALIBRATION_EXAMPLES = 16


class Prepared(NamedTuple):
    """Where a run begins.

    Attributes:
      start: what the loop starts from.
      text_rows: text tokens before the video tokens in the residual stream.
    """

    start: Start
    text_rows: int


def token_layout(model: Any, data: Trajectories) -> tuple[int, int]:
    """Frames of tokens, and text tokens in the residual stream before them."""
    frames, _, height, width = data.latents.shape[2:]
    before = model.description.conditions.prompt.stream == "before"
    grid = model.config.token_grid(frames, height, width)
    return grid[0], data.text.shape[2] if before else 0


def prepare(
    model: Any, data: Trajectories, options: QVDiTOptions, *, dtype: Any = jnp.float32
) -> Prepared:
    """Searched ranges, empty estimators, and M from the teacher's activations.

    Args:
      model: the network in full precision.
      data: its trajectories; a few examples, evenly spread, give M.
      options: bits and scope.
      dtype: compute dtype while activations are observed.
    """
    frames, text_rows = token_layout(model, data)
    count = min(CALIBRATION_EXAMPLES, len(data))
    examples = np.linspace(0, len(data) - 1, count).round().astype(int)
    factors = frame_factors(
        model,
        (data.batch(examples[i : i + 1]) for i in range(count)),
        options,
        frames=frames,
        text_rows=text_rows,
        dtype=dtype,
    )
    start = q_vdit_start(
        model, options, frames=frames, factors=factors, text_rows=text_rows
    )
    return Prepared(start, text_rows)


def rates_for(
    options: QVDiTOptions, changes: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Learning rates of the groups that `options` give.

    Raises:
      ValueError: a rate for a group that there is not.
    """
    rates = dict(LEARNING_RATES)
    if not options.inner_rank:
        del rates["inner"]
    unknown = set(changes or {}) - set(rates)
    if unknown:
        raise ValueError(
            f"learning rates: expected some of {sorted(rates)}, found {sorted(unknown)}"
        )
    return {**rates, **(changes or {})}


def tune_q_vdit(
    model: Any,
    data: Trajectories,
    options: QVDiTOptions,
    *,
    loop: TuneOptions | None = None,
    learning_rates: Mapping[str, float] | None = None,
    devices: list[Any] | None = None,
    after_call: Callable[..., Any] | None = None,
) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    """Tunes in memory; `sixbit tune` does the same with checkpoints.

    Args:
      model: the network in full precision.
      data: its trajectories (`record_trajectories`).
      options: bits and scope.
      loop: numbers of the run.
      learning_rates: by group, in the place of `LEARNING_RATES`.
      devices: batches are split over these; None takes all.
      after_call: see `Tuner.run`.

    Returns:
      The packed model, and the losses of all iterations.

    Raises:
      ValueError: groups, batch or data that do not fit.
      FloatingPointError: a loss is not finite.
    """
    loop = TuneOptions() if loop is None else loop
    rates = rates_for(options, learning_rates)
    start, text_rows = prepare(model, data, options, dtype=jnp.dtype(loop.dtype))
    tuner = Tuner(model, q_vdit_method(text_rows=text_rows), loop, devices=devices)
    state, losses = tuner.run(
        tuner.init(start, rates), start.frozen, data, after_call=after_call
    )
    packed = packed_model(
        model, state.trainable, start.frozen, options, text_rows=text_rows
    )
    return packed, losses


def search_rule(w: jax.Array, bits: int) -> UniformGrid:
    """Range search as a grid rule of `UniformArray.quantize`."""
    return search_range(w, float(levels_of(bits)))


_to_grid = partial(jax.jit, static_argnames=("bits", "rotation", "grid"))(
    UniformArray.quantize
)


@dataclass(frozen=True)
class RangeSearchRecipe:
    """Sites' weights on searched ranges, nothing tuned and nothing rotated.

    Attributes:
      bits: 3 to 8.
    """

    bits: int = 4
    multiple: ClassVar[int] = 8

    @property
    def compress(self) -> Callable[..., UniformArray]:
        """The compiled function (weight, *, rotation) -> UniformArray."""
        return partial(_to_grid, bits=self.bits, grid=search_rule)

    @property
    def format_name(self) -> str:
        """As in a checkpoint's header."""
        return f"uniform{self.bits}"

    @property
    def rotation(self) -> int:
        """Adapters read the activation as it is."""
        return 0

    @property
    def small_batch(self) -> bool:
        """Linears that run on few rows stay as they are."""
        return False

    @property
    def fit(self) -> str:
        """How the grid of a row is found, in words."""
        return "range search"


def untuned(model: nnx.Module, options: QVDiTOptions) -> nnx.Module:
    """Range search alone: the row that tuning is compared with.

    Args:
      model: a ported transformer with plain weights.
      options: bits and scope.
    """

    def change(name: str, weight: Any, rotation: int) -> UniformArray:
        compress = RangeSearchRecipe(options.bits_of(name)[0]).compress
        return compress(weight, rotation=rotation)

    return changed_weights(model, RangeSearchRecipe(), change)


__all__ = [
    "LEARNING_RATES",
    "Prepared",
    "RangeSearchRecipe",
    "prepare",
    "rates_for",
    "token_layout",
    "tune_q_vdit",
    "untuned",
]
