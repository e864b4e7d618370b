"""UniPC on a flow-matching schedule (diffusers' `UniPCMultistepScheduler`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.config_schema import (
    Schema,
    boolean,
    choice,
    fixed,
    integer,
    number,
    optional,
    sequence,
)
from sixbit_jax.sampling.schedulers.base import read_config
from sixbit_jax.sampling.schedulers.flow import (
    MOST_STEPS,
    SHIFT,
    FlowSchedule,
    shifted,
)

SOLVER_TYPES = ("bh1", "bh2")

_OPTIONS = {
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "flow_shift": 1.0,
    "disable_corrector": (),
}
# (diffusers' default, what this class supports).
_FIXED = {
    "prediction_type": ("epsilon", "flow_prediction"),
    "use_flow_sigmas": (False, True),
    "predict_x0": (True, True),
    "thresholding": (False, False),
    "lower_order_final": (True, True),
    "solver_p": (None, None),
    "use_karras_sigmas": (False, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
    "final_sigmas_type": ("zero", "zero"),
    "use_dynamic_shifting": (False, False),
    "shift_terminal": (None, None),
}
_SCHEMA = Schema(
    "UniPC config",
    {
        "num_train_timesteps": integer(1, MOST_STEPS),
        "flow_shift": SHIFT,
        "solver_order": integer(1, 3),
        "solver_type": choice(*SOLVER_TYPES),
        "disable_corrector": sequence(integer(0, MOST_STEPS), at_most=1000),
    },
    {name: fixed(supported) for name, (_, supported) in _FIXED.items()}
    # Read by diffusers only for schedules that are not flows.
    | {
        "beta_start": number(0, 1),
        "beta_end": number(0, 1),
        "beta_schedule": choice("linear", "scaled_linear", "squaredcos_cap_v2"),
        "trained_betas": optional(sequence(number(0, 1))),
        "dynamic_thresholding_ratio": number(0, 1),
        "sample_max_value": number(0, 1e6),
        "timestep_spacing": choice("linspace", "leading", "trailing"),
        "steps_offset": integer(0, MOST_STEPS),
        "rescale_betas_zero_snr": boolean(),
        "time_shift_type": choice("exponential", "linear"),
        "sigma_min": optional(number(0, 1e6)),
        "sigma_max": optional(number(0, 1e6)),
    },
)


class UniPCState(NamedTuple):
    """Coefficients of every step, and the history.

    The clean sample is x - sigma v. The corrected sample is `correct` times (sample,
    sample before the last step, clean sample, clean samples before it, latest first);
    the next sample is `predict` times (corrected sample, clean sample, and the same
    history less its oldest).
    """

    sigma: Float[Array, "steps"]
    correct: Float[Array, "steps terms"]
    predict: Float[Array, "steps terms_less_2"]
    last_sample: Float[Array, "*sample"]
    last_clean: Float[Array, "order *sample"]


@dataclass(frozen=True)
class UniPC(FlowSchedule):
    """UniPC-p with B(h) (arXiv 2302.04867, algorithms 5 to 8), data prediction.

    With half log-SNR l = log((1 - sigma) / sigma), h = l' - l and a = 1 - sigma':
    predictor x' = (sigma' / sigma) x - a (e^-h - 1) x_0 - a B(h) sum_k rho_k D_k,
    D_k = (x_0 of k steps ago - x_0) / r_k, r_k = (l of k steps ago - l) / h; the
    corrector adds the term of the new clean sample. Order 1 in the first and last
    step.

    Attributes:
      flow_shift: the flow shift of the sigmas; 3.0 (480p) or 5.0 (720p, TI2V) for Wan.
      solver_order: p, 1 to 3.
      solver_type: B(h) is e^-h - 1 ("bh2") or -h ("bh1").
      disable_corrector: steps after which the sample is not corrected.

    >>> from sixbit_jax import UniPC
    >>> UniPC(flow_shift=3.0).timesteps(4).tolist()
    [999, 900, 750, 500]
    """

    flow_shift: float = 3.0
    solver_order: int = 2
    solver_type: str = "bh2"
    disable_corrector: tuple[int, ...] = ()

    class_name: ClassVar[str] = "UniPCMultistepScheduler"

    def __post_init__(self) -> None:
        _SCHEMA.check(self)
        self._check_given()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "UniPC":
        """Read a diffusers `scheduler_config.json`.

        Args:
          config: the parsed file.

        Raises:
          ConfigError: a ValueError, for another class, unknown options and
            unsupported values; lists all of them.
        """
        return read_config(
            config,
            cls,
            class_name=cls.class_name,
            schema=_SCHEMA,
            defaults=_OPTIONS | {key: default for key, (default, _) in _FIXED.items()},
        )

    def sigmas(self, num_steps: int) -> np.ndarray:
        """Noise level before each step, and 0 after the last; float64 [num_steps + 1].

        The first is 1 - 1e-6: at 1 the log-SNR would be infinite.
        """
        self._check_steps(num_steps)
        levels = self._given_levels(self.flow_shift, np.float64)
        if levels is None:
            levels = np.linspace(1, 1 / self.num_train_timesteps, num_steps + 1)[:-1]
            levels = shifted(levels, self.flow_shift)
        if abs(levels[0] - 1) < 1e-6:
            levels[0] -= 1e-6
        return np.append(levels, 0.0)

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The model's timesteps in the order they run, int64 [num_steps].

        Given ones are float32 where they are no whole numbers.

        Raises:
          ValueError: for a number of steps outside of 1 to num_train_timesteps.
        """
        levels = self.sigmas(num_steps)[:-1]
        if self.given_timesteps is not None:
            times = np.array(self.given_timesteps)
            whole = (times == np.floor(times)).all()
            return times.astype(np.int64 if whole else np.float32)
        return (levels * self.num_train_timesteps).astype(np.int64)

    def init(self, num_steps: int, sample_shape: tuple[int, ...]) -> UniPCState:
        """Coefficient tables of all steps and an empty history.

        Args:
          num_steps: number of denoising steps.
          sample_shape: shape of the samples that `step` will see.
        """
        order = self.solver_order
        # diffusers stores float32: 1 - sigma of the first step is 1.3% off for it.
        sigmas = self.sigmas(num_steps).astype(np.float32).astype(np.float64)
        correct = np.zeros((num_steps, 3 + order))
        predict = np.zeros((num_steps, 1 + order))
        last_order = 0
        for index in range(num_steps):
            if index == 0 or index - 1 in self.disable_corrector:
                correct[index, 0] = 1.0
            else:
                keep, terms = self._update(sigmas, index - 1, last_order, correct=True)
                # terms: the new clean sample, then those that the predictor had.
                correct[index, 1] = keep
                correct[index, 2 : 2 + len(terms)] = terms
            last_order = min(order, num_steps - index, index + 1)
            keep, terms = self._update(sigmas, index, last_order, correct=False)
            predict[index, 0] = keep
            predict[index, 1 : 1 + len(terms)] = terms
        return UniPCState(
            *(
                jnp.asarray(table, jnp.float32)
                for table in (sigmas[:-1], correct, predict)
            ),
            last_sample=jnp.zeros(sample_shape, jnp.float32),
            last_clean=jnp.zeros((order, *sample_shape), jnp.float32),
        )

    def _update(
        self, sigmas: np.ndarray, index: int, order: int, *, correct: bool
    ) -> tuple[float, list[float]]:
        """Weights of the sample and of clean samples in the step from `index` on.

        Returns:
          The weight of the sample before the step; the weights of the clean samples,
          latest first (the corrector's begin with the one after the step).
        """
        before, after = sigmas[index], sigmas[index + 1]
        if after == 0:
            # Infinite log-SNR: what is left is the clean sample.
            return 0.0, [1.0]

        def level(sigma: float) -> float:
            return math.log1p(-sigma) - math.log(sigma)

        h = level(after) - level(before)
        ratios = [
            (level(sigmas[index - k]) - level(before)) / h for k in range(1, order)
        ]
        b_of_h = math.expm1(-h) if self.solver_type == "bh2" else -h
        weights = _weights(-h, np.array([*ratios, 1.0]), b_of_h, correct=correct)
        scale = -(1 - after) * b_of_h
        # sum_k rho_k (x_k - x_0) / r_k in terms of the x_k and x_0.
        history = [scale * w / r for w, r in zip(weights, ratios, strict=False)]
        newest = scale * weights[-1] if correct else 0.0
        current = -(1 - after) * math.expm1(-h) - sum(history) - newest
        terms = [current, *history]
        return after / before, [newest, *terms] if correct else terms

    def step(
        self,
        state: UniPCState,
        index: Int[Array, ""] | int,
        model_output: Float[Array, "*sample"],
        sample: Float[Array, "*sample"],
        noise: Float[Array, "*sample"] | None = None,
    ) -> tuple[Float[Array, "*sample"], UniPCState]:
        """Corrects the sample with the new prediction, then takes the next step.

        Args:
          state: from `init` or the step before.
          index: which step, 0 to num_steps - 1; may be traced.
          model_output: the (guided) velocity.
          sample: the current sample.
          noise: ignored.

        Returns:
          The next sample, computed in float32, in the dtype of `sample`; the state
          with this step's corrected and clean samples as its history.
        """
        del noise
        x = sample.astype(jnp.float32)
        clean = x - state.sigma[index] * model_output.astype(jnp.float32)
        known = jnp.concatenate([clean[None], state.last_clean])
        weights = state.correct[index]
        corrected = weights[0] * x + weights[1] * state.last_sample
        corrected += _combine(weights[2:], known)
        known = known[:-1]
        weights = state.predict[index]
        after = weights[0] * corrected + _combine(weights[1:], known)
        state = state._replace(last_sample=corrected, last_clean=known)
        return after.astype(sample.dtype), state


def _weights(
    hh: float, ratios: np.ndarray, b_of_h: float, *, correct: bool
) -> np.ndarray:
    """rho of the divided differences: R rho = b (equation 10 of the paper).

    Args:
      hh: -h.
      ratios: r of the history, oldest last, and then 1.
      b_of_h: B(h).
      correct: with the equation of the new clean sample.
    """
    order = len(ratios)
    # The published code takes 1/2 for the smallest systems.
    if correct and order == 1:
        return np.array([0.5])
    if not correct and order <= 2:
        return np.full(order - 1, 0.5)
    rows = np.stack([ratios**k for k in range(order)])
    right, factorial = [], 1.0
    value = math.expm1(hh) / hh - 1
    for k in range(1, order + 1):
        right.append(value * factorial / b_of_h)
        factorial *= k + 1
        value = value / hh - 1 / factorial
    if correct:
        return np.linalg.solve(rows, np.array(right))
    return np.linalg.solve(rows[:-1, :-1], np.array(right[:-1]))


def _combine(weights: Array, samples: Array) -> Array:
    """The weighted sum over the leading axis; exact products, unlike a GPU's matmul."""
    total = weights[0] * samples[0]
    for k in range(1, samples.shape[0]):
        total += weights[k] * samples[k]
    return total


__all__ = ["UniPC", "UniPCState"]
