"""Makes the golden trajectories of the CogVideoX schedulers with diffusers.

Run from the repository root: `python -m tests.golden.make_schedulers`.
"""

import json
import math
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox

from tests.golden.fake_model import fake_model
from tests.golden.trajectories import (
    FOLDER,
    TRAINING_TIMESTEPS,
    first_sample,
    step_noise,
    training_pair,
)

CLASSES = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
# The published scheduler_config.json, apart from snr_shift_scale.
PUBLISHED = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
OTHER_OPTIONS = {
    "uneven_steps": (PUBLISHED | {"snr_shift_scale": 1.0}, 7),
    "uneven_rounding": (PUBLISHED | {"snr_shift_scale": 1.0}, 48),
    "one_step": (PUBLISHED | {"snr_shift_scale": 3.0}, 1),
    "two_steps": (PUBLISHED | {"snr_shift_scale": 3.0}, 2),
    "diffusers_defaults": ({}, 8),
    "linspace": (PUBLISHED | {"timestep_spacing": "linspace"}, 8),
    "leading_offset": (
        PUBLISHED
        | {
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "set_alpha_to_one": False,
        },
        8,
    ),
    "predicts_sample": (PUBLISHED | {"prediction_type": "sample"}, 8),
}


def trajectory(
    scheduler: Any, num_steps: int, guidance_scale: float, dynamic: bool
) -> dict[str, np.ndarray]:
    """The denoising loop of the diffusers pipelines on the fake model."""
    scheduler.set_timesteps(num_steps)
    noise = torch.from_numpy(step_noise(num_steps))
    sample = torch.from_numpy(first_sample())
    old_clean = None
    scales, samples = [], []
    for index, timestep in enumerate(scheduler.timesteps):
        conditional, unconditional = fake_model(torch, sample, timestep.float())
        scale = guidance_scale
        if dynamic:
            progress = (num_steps - timestep.item()) / num_steps
            scale = 1 + guidance_scale * ((1 - math.cos(math.pi * progress**5.0)) / 2)
        output = unconditional + scale * (conditional - unconditional)
        if isinstance(scheduler, CogVideoXDDIMScheduler):
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        else:
            with mock.patch.object(
                scheduling_dpm_cogvideox,
                "randn_tensor",
                lambda *_, given=noise[index], **__: given,
            ):
                sample, old_clean = scheduler.step(
                    output,
                    old_clean,
                    timestep,
                    scheduler.timesteps[index - 1] if index > 0 else None,
                    sample,
                    return_dict=False,
                )
        assert sample.dtype == torch.float32
        scales.append(scale)
        samples.append(sample.numpy())
    return {
        "timesteps": scheduler.timesteps.numpy(),
        "scales": np.array(scales, np.float64),
        "samples": np.stack(samples),
    }


def cases() -> list[tuple[str, dict[str, Any], int, float, bool]]:
    """(name, config, steps, guidance scale, dynamic) of every trajectory."""
    rows = [
        (
            f"s{steps}_snr{shift:g}_{'dynamic' if dynamic else 'constant'}",
            PUBLISHED | {"snr_shift_scale": shift},
            steps,
            6.0,
            dynamic,
        )
        for steps in (10, 25, 50)
        for shift in (1.0, 3.0)
        for dynamic in (False, True)
    ]
    others = OTHER_OPTIONS.items()
    return rows + [(name, *rest, 1.0, False) for name, rest in others]


def main() -> None:
    """Make every trajectory and the training values."""
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for key, cls in CLASSES.items():
        arrays, metas = {}, []
        for name, options, num_steps, guidance_scale, dynamic in cases():
            config = {"_class_name": cls.__name__} | options
            result = trajectory(cls(**options), num_steps, guidance_scale, dynamic)
            assert all(np.isfinite(value).all() for value in result.values()), name
            arrays |= {f"{name}.{field}": value for field, value in result.items()}
            metas.append(
                {
                    "name": name,
                    "config": config,
                    "num_steps": num_steps,
                    "guidance_scale": guidance_scale,
                    "dynamic": dynamic,
                }
            )
            print(key, name, float(np.abs(result["samples"][-1]).mean()))
        np.savez_compressed(
            FOLDER / f"{key}.npz", meta=np.array(json.dumps(metas)), **arrays
        )

    clean, noise = (torch.from_numpy(array) for array in training_pair())
    timesteps = torch.tensor(TRAINING_TIMESTEPS)
    arrays, metas = {}, []
    for shift in (1.0, 3.0):
        for cls in CLASSES.values():
            options = PUBLISHED | {"snr_shift_scale": shift}
            scheduler = cls(**options)
            index = len(metas)
            noisy = scheduler.add_noise(clean, noise, timesteps)
            velocity = scheduler.get_velocity(clean, noise, timesteps)
            arrays[f"{index}.noisy"] = noisy.numpy()
            arrays[f"{index}.velocity"] = velocity.numpy()
            metas.append({"_class_name": cls.__name__} | options)
    np.savez_compressed(
        FOLDER / "training.npz", meta=np.array(json.dumps(metas)), **arrays
    )


if __name__ == "__main__":
    main()
