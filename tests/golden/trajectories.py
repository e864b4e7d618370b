"""Reading the golden trajectories of the schedulers. Needs NumPy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array

FOLDER = Path(__file__).parent / "schedulers"
SAMPLE_SHAPE = (1, 3, 2, 4, 4)
TRAINING_TIMESTEPS = (0, 1, 250, 500, 998, 999)


@dataclass(frozen=True)
class GoldenTrajectory:
    """One denoising run of a diffusers scheduler on the fake model.

    Attributes:
      name: name of the case.
      config: scheduler_config.json.
      num_steps: number of denoising steps.
      guidance_scale: guidance scale, 1 without guidance.
      dynamic: whether the scale is diffusers' `use_dynamic_cfg`.
      timesteps: int64 [steps].
      scales: float64 [steps], the scale that each step used.
      samples: float32 [steps, *SAMPLE_SHAPE], after every step.
    """

    name: str
    config: dict[str, Any]
    num_steps: int
    guidance_scale: float
    dynamic: bool
    timesteps: np.ndarray
    scales: np.ndarray
    samples: np.ndarray


def first_sample() -> np.ndarray:
    """The sample that every trajectory starts from, float32."""
    return random_array("first sample", SAMPLE_SHAPE)


def step_noise(num_steps: int) -> np.ndarray:
    """The noise of every step, float32 [num_steps, *SAMPLE_SHAPE]."""
    return random_array("step noise", (num_steps, *SAMPLE_SHAPE))


def training_pair() -> tuple[np.ndarray, np.ndarray]:
    """Clean samples and noise, one for each of TRAINING_TIMESTEPS, float32."""
    shape = (len(TRAINING_TIMESTEPS), *SAMPLE_SHAPE[1:])
    return random_array("clean", shape), random_array("noise", shape)


def load_trajectories(name: str) -> list[GoldenTrajectory]:
    """All stored trajectories of a scheduler.

    Args:
      name: "ddim" or "dpm".
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        return [
            GoldenTrajectory(
                **meta,
                timesteps=file[f"{meta['name']}.timesteps"],
                scales=file[f"{meta['name']}.scales"],
                samples=file[f"{meta['name']}.samples"],
            )
            for meta in json.loads(str(file["meta"]))
        ]


def load_training() -> list[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Stored (config, noisy samples, velocities) at TRAINING_TIMESTEPS."""
    with np.load(FOLDER / "training.npz") as file:
        return [
            (config, file[f"{index}.noisy"], file[f"{index}.velocity"])
            for index, config in enumerate(json.loads(str(file["meta"])))
        ]
