"""MPQ-DMv2 from a model to a packed one: observed, fitted, tuned, packed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.methods.mpq_dm.method import (
    GROUPS,
    MPQDMOptions,
    mpq_dm_method,
    mpq_dm_start,
)
from sixbit_jax.methods.mpq_dm.pack import packed_model
from sixbit_jax.methods.q_vdit.tune import token_layout
from sixbit_jax.tuning.loop import TuneOptions, Tuner
from sixbit_jax.tuning.observe import observe
from sixbit_jax.tuning.trajectories import Trajectories

LEARNING_RATES = {"levels": 3e-5, "outside": 3e-4, "inside": 3e-4}
"""Our choice; the paper does not say."""
CALIBRATION_EXAMPLES = 8
CALIBRATION_ROWS = 512


def calibration_rows(
    model: Any,
    data: Trajectories,
    *,
    rows: int = CALIBRATION_ROWS,
    dtype: Any = jnp.float32,
) -> dict[str, Float[Array, "L M K"]]:
    """Rows of the activation that every weight meets, evenly spread over examples.

    Args:
      model: the network in full precision.
      data: its trajectories.
      rows: at most so many of each weight.
      dtype: compute dtype.
    """
    count = min(CALIBRATION_EXAMPLES, len(data))
    numbers = np.linspace(0, len(data) - 1, count).round().astype(int)

    def some(name: str, x: Array) -> Array:
        del name
        every = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        return every[:: max(len(every) // rows, 1)][:rows]

    return observe(model, [data.batch(numbers)], some, dtype=dtype)


def tune_mpq_dm(
    model: Any,
    data: Trajectories,
    options: MPQDMOptions,
    *,
    loop: TuneOptions | None = None,
    learning_rates: Mapping[str, float] | None = None,
    devices: list[Any] | None = None,
    after_call: Callable[..., Any] | None = None,
) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    """Tunes in memory.

    Args:
      model: the network in full precision.
      data: its trajectories (`record_trajectories`).
      options: bits, adapters, memory; no rotation beside an adapter outside.
      loop: numbers of the run.
      learning_rates: by group, in the place of `LEARNING_RATES`; of the adapters only
        the one of `options.placement` is used.
      devices: batches are split over these; None takes all.
      after_call: see `Tuner.run`.

    Returns:
      The packed model, and the losses of all iterations.

    Raises:
      ValueError: groups, batch, rotation or data that do not fit.
      FloatingPointError: a loss is not finite.
    """
    unknown = set(learning_rates or {}) - set(GROUPS)
    if unknown:
        raise ValueError(
            f"learning rates: expected some of {GROUPS}, found {sorted(unknown)}"
        )
    if options.rotation and options.placement == "outside":
        raise ValueError(
            "tuning: expected no rotation beside an adapter outside the quantizer, "
            f"found rotation {options.rotation}"
        )
    loop = TuneOptions() if loop is None else loop
    rates = {**LEARNING_RATES, **(learning_rates or {})}
    used = ("levels", options.placement)
    rates = {name: rate if name in used else 0.0 for name, rate in rates.items()}
    frames, text_rows = token_layout(model, data)
    start = mpq_dm_start(
        model,
        options,
        num_steps=len(data.timesteps),
        inputs=calibration_rows(model, data),
    )
    method = mpq_dm_method(
        frames=frames,
        text_rows=text_rows,
        draws=options.memory.draws,
        rotation=options.rotation,
    )
    tuner = Tuner(model, method, loop, devices=devices)
    state, losses = tuner.run(
        tuner.init(start, rates), start.frozen, data, after_call=after_call
    )
    return packed_model(model, state.trainable, start.frozen, options), losses


__all__ = ["LEARNING_RATES", "calibration_rows", "tune_mpq_dm"]
