"""The noise schedule that the two CogVideoX schedulers share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

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
)
from sixbit_jax.sampling.schedulers.base import read_config
from sixbit_jax.sampling.schedulers.given import check_count, check_given

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
TIMESTEP_SPACINGS = ("trailing", "leading", "linspace")

# What diffusers fills in where a scheduler_config.json leaves an option out.
_DIFFUSERS_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 3.0,
}
_MOST_STEPS = 100_000


def _alphas(schedule: "CogVideoXSchedule") -> str | None:
    if schedule.beta_start > schedule.beta_end:
        return (
            "beta_start: expected at most beta_end, found "
            f"{schedule.beta_start} and {schedule.beta_end}"
        )
    with np.errstate(all="ignore"):
        alphas = schedule.alphas_cumprod()
    # Every coefficient divides by one of these, or by a difference of two.
    if (np.diff(alphas) < 0).all() and (alphas[:-1] > 1e-30).all():
        return None
    return (
        "beta_start, beta_end and num_train_timesteps: expected cumulative alphas that "
        "fall in every step and do not vanish before the last, found "
        f"{alphas[0]:.3g} to {alphas[-1]:.3g}"
    )


def _prediction(schedule: "CogVideoXSchedule") -> str | None:
    if schedule.prediction_type != "epsilon" or not schedule.rescale_betas_zero_snr:
        return None
    return (
        "prediction_type: 'epsilon' says nothing about the sample where the SNR is "
        "zero: expected rescale_betas_zero_snr=False, found True"
    )


_ALPHAS = ("num_train_timesteps", "beta_start", "beta_end", "snr_shift_scale")
_SCHEMA = Schema(
    "CogVideoX scheduler config",
    {
        "num_train_timesteps": integer(2, _MOST_STEPS),
        "beta_start": number(0, 0.999, above=True),
        "beta_end": number(0, 0.999, above=True),
        "snr_shift_scale": number(0, 1e4, above=True),
        "rescale_betas_zero_snr": boolean(),
        "timestep_spacing": choice(*TIMESTEP_SPACINGS),
        "steps_offset": integer(0, _MOST_STEPS),
        "set_alpha_to_one": boolean(),
        "prediction_type": choice(*PREDICTION_TYPES),
    },
    {
        "beta_schedule": fixed("scaled_linear"),
        "trained_betas": fixed(None),
        # Registered by diffusers' classes and used by none of their code.
        "clip_sample": boolean(),
        "clip_sample_range": number(0, 1e6),
        "sample_max_value": number(0, 1e6),
    },
    relations={
        (*_ALPHAS, "rescale_betas_zero_snr"): _alphas,
        ("prediction_type", "rescale_betas_zero_snr"): _prediction,
    },
)


@dataclass(frozen=True)
class CogVideoXSchedule:
    """Betas, cumulative alphas and timesteps of CogVideoX.

    betas are linear in their square root, the SNR is divided by `snr_shift_scale`
    (alpha / (s + (1 - s) alpha)), and with `rescale_betas_zero_snr` the square roots
    of the cumulative alphas are shifted and scaled so that the last is 0
    (arXiv 2305.08891, algorithm 1). The defaults are those of CogVideoX-5b; 2b has
    `snr_shift_scale=3.0`.

    Attributes:
      num_train_timesteps: number of timesteps of the forward process.
      beta_start: first beta.
      beta_end: last beta.
      snr_shift_scale: divisor of the signal-to-noise ratio, positive.
      rescale_betas_zero_snr: force zero SNR at the last timestep.
      timestep_spacing: "trailing", "leading" or "linspace".
      steps_offset: added to the timesteps of "leading".
      set_alpha_to_one: cumulative alpha after the last step is 1, else that of
        timestep 0.
      prediction_type: "v_prediction", "epsilon" or "sample".
      given_timesteps: instead of spaced ones (`with_timesteps`).

    Raises:
      ValueError: for a value outside of these.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    snr_shift_scale: float = 1.0
    rescale_betas_zero_snr: bool = True
    timestep_spacing: str = "trailing"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    prediction_type: str = "v_prediction"
    given_timesteps: tuple[int, ...] | None = field(default=None, kw_only=True)

    class_name: ClassVar[str]

    def __post_init__(self) -> None:
        _SCHEMA.check(self)
        top = self.num_train_timesteps - 1
        found = check_given("given_timesteps", self.given_timesteps, top, above=None)
        if found is not None and any(value != int(value) for value in found):
            raise ValueError(
                f"given_timesteps: expected whole numbers, found {list(found)}"
            )
        whole = None if found is None else tuple(map(int, found))
        object.__setattr__(self, "given_timesteps", whole)

    @property
    def given_steps(self) -> int | None:
        """How many steps are given; None: as many as are asked for."""
        return None if self.given_timesteps is None else len(self.given_timesteps)

    def with_timesteps(self, timesteps: Sequence[int]) -> Self:
        """This schedule at given timesteps; each step leads to the next one.

        Args:
          timesteps: whole numbers, falling, in [0, num_train_timesteps). The last step
            leads to the clean sample.

        Raises:
          ValueError: for others.
        """
        return replace(self, given_timesteps=tuple(timesteps))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a diffusers `scheduler_config.json`.

        Absent options take diffusers' defaults, which differ from this class's.

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
            defaults=_DIFFUSERS_DEFAULTS,
        )

    def alphas_cumprod(self) -> np.ndarray:
        """Cumulative products of 1 - beta, float64 [num_train_timesteps]."""
        roots = np.linspace(
            self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps
        )
        alphas = np.cumprod(1 - roots**2)
        shift = self.snr_shift_scale
        alphas = alphas / (shift + (1 - shift) * alphas)
        if self.rescale_betas_zero_snr:
            roots = np.sqrt(alphas)
            first, last = roots[0], roots[-1]
            alphas = ((roots - last) * (first / (first - last))) ** 2
        return alphas

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The model's timesteps in the order they run.

        Args:
          num_steps: number of denoising steps, 1 to `num_train_timesteps`.

        Returns:
          int64 [num_steps], descending.

        Raises:
          ValueError: if the schedule has no such number of steps.
        """
        total = self.num_train_timesteps
        check_count(num_steps, self.given_steps)
        if self.given_timesteps is not None:
            return np.array(self.given_timesteps, np.int64)
        if not 1 <= num_steps <= total:
            raise ValueError(
                f"num_steps: expected 1 to {total} (num_train_timesteps), "
                f"found {num_steps}"
            )
        if self.timestep_spacing == "linspace":
            steps = np.round(np.linspace(0, total - 1, num_steps))[::-1]
        elif self.timestep_spacing == "leading":
            steps = np.arange(num_steps)[::-1] * (total // num_steps)
            steps = steps + self.steps_offset
        else:
            # arange, for its rounding is part of the published schedule; for some
            # counts (61, 103) it holds one element too many, at timestep -1.
            steps = np.round(np.arange(total, 0, -total / num_steps)) - 1
            steps = steps[:num_steps]
        steps = steps.astype(np.int64)
        if steps[0] >= total:
            raise ValueError(
                f"{num_steps} steps with steps_offset={self.steps_offset} start at "
                f"timestep {steps[0]}: expected less than {total}"
            )
        return steps

    def alpha_pairs(self, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Cumulative alpha of each step, and of the sample that the step leads to.

        The step leads to `timestep - num_train_timesteps // num_steps`, which is not
        the next timestep where the division leaves a remainder; so does diffusers.

        Args:
          num_steps: number of denoising steps.

        Returns:
          Two float64 arrays [num_steps].
        """
        alphas = self.alphas_cumprod()
        final = 1.0 if self.set_alpha_to_one else alphas[0]
        steps = self.timesteps(num_steps)
        previous = self.previous_timesteps(num_steps)
        after = np.where(previous >= 0, alphas[np.maximum(previous, 0)], final)
        return alphas[steps], after

    def previous_timesteps(self, num_steps: int) -> np.ndarray:
        """Timestep that each step leads to, negative for the clean sample."""
        if self.given_timesteps is not None:
            check_count(num_steps, self.given_steps)
            return np.array([*self.given_timesteps[1:], -1], np.int64)
        return self.timesteps(num_steps) - self.num_train_timesteps // num_steps

    def clean_coefficients(self, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of sample and model output in the predicted clean sample.

        v_prediction: sqrt(a) x - sqrt(1 - a) v. epsilon: (x - sqrt(1 - a) e) /
        sqrt(a). sample: the output itself.

        Args:
          alpha: cumulative alpha of each step, float64 [num_steps].

        Returns:
          Two float64 arrays [num_steps].
        """
        signal, sigma = np.sqrt(alpha), np.sqrt(1 - alpha)
        if self.prediction_type == "v_prediction":
            return signal, -sigma
        if self.prediction_type == "epsilon":
            return 1 / signal, -sigma / signal
        return np.zeros_like(alpha), np.ones_like(alpha)

    def add_noise(
        self,
        clean: Float[Array, "*batch_sample"],
        noise: Float[Array, "*batch_sample"],
        timestep: Int[Array | np.ndarray, "*batch"] | int,
    ) -> Float[Array, "*batch_sample"]:
        """The forward process: sqrt(a_t) x_0 + sqrt(1 - a_t) noise.

        Args:
          clean: clean samples, [*batch, ...].
          noise: standard normal noise of the same shape.
          timestep: integers in [0, num_train_timesteps), [*batch] or a scalar.

        Returns:
          Noisy samples, computed in float32, in the dtype of `clean`.
        """
        signal, sigma = self._signal_and_sigma(timestep, clean.ndim)
        noisy = signal * _float32(clean) + sigma * _float32(noise)
        return noisy.astype(clean.dtype)

    def velocity(
        self,
        clean: Float[Array, "*batch_sample"],
        noise: Float[Array, "*batch_sample"],
        timestep: Int[Array | np.ndarray, "*batch"] | int,
    ) -> Float[Array, "*batch_sample"]:
        """The v-prediction target: sqrt(a_t) noise - sqrt(1 - a_t) x_0.

        Args:
          clean: clean samples, [*batch, ...].
          noise: standard normal noise of the same shape.
          timestep: integers in [0, num_train_timesteps), [*batch] or a scalar.

        Returns:
          Velocities, computed in float32, in the dtype of `clean`.
        """
        signal, sigma = self._signal_and_sigma(timestep, clean.ndim)
        target = signal * _float32(noise) - sigma * _float32(clean)
        return target.astype(clean.dtype)

    def _signal_and_sigma(
        self, timestep: Int[Array | np.ndarray, "*batch"] | int, ndim: int
    ) -> tuple[Array, Array]:
        alphas = self.alphas_cumprod()
        timestep = jnp.asarray(timestep)
        shape = timestep.shape + (1,) * (ndim - timestep.ndim)

        def at_timestep(table: np.ndarray) -> Array:
            return jnp.asarray(table, jnp.float32)[timestep].reshape(shape)

        return at_timestep(np.sqrt(alphas)), at_timestep(np.sqrt(1 - alphas))


def _float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(x, jnp.float32)


__all__ = ["PREDICTION_TYPES", "TIMESTEP_SPACINGS", "CogVideoXSchedule"]
