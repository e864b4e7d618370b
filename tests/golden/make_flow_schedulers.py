"""Makes the golden trajectories of the flow-matching schedulers with diffusers.

Run from the repository root: `python -m tests.golden.make_flow_schedulers`.
"""

import json
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from tests.golden.fake_model import fake_model
from tests.golden.trajectories import first_sample
from tests.golden.wan_cases import FOLDER

CLASSES = {"euler": FlowMatchEulerDiscreteScheduler, "unipc": UniPCMultistepScheduler}
# The options of the published scheduler_config.json that matter.
WAN = {
    "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
}
CASES = [
    ("euler", {"shift": 3.0}, 10),
    ("euler", {"shift": 5.0}, 50),
    ("euler", {"shift": 1.0}, 7),
    ("euler", {"shift": 7.0}, 1),
    ("unipc", WAN, 10),
    ("unipc", WAN, 50),
    ("unipc", WAN | {"flow_shift": 5.0}, 50),
    ("unipc", WAN | {"flow_shift": 1.0}, 7),
    ("unipc", WAN, 1),
    ("unipc", WAN, 2),
    ("unipc", WAN, 3),
    ("unipc", WAN | {"solver_order": 1}, 8),
    ("unipc", WAN | {"solver_order": 3}, 12),
    ("unipc", WAN | {"solver_type": "bh1"}, 12),
    ("unipc", WAN | {"disable_corrector": [0, 1]}, 8),
]
GUIDANCE = 5.0


def trajectory(scheduler: Any, num_steps: int) -> dict[str, np.ndarray]:
    """The denoising loop of the diffusers pipelines on the fake model."""
    scheduler.set_timesteps(num_steps)
    sample = torch.from_numpy(first_sample())
    samples = []
    for timestep in scheduler.timesteps:
        conditional, unconditional = fake_model(torch, sample, timestep.float())
        output = unconditional + GUIDANCE * (conditional - unconditional)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        assert sample.dtype == torch.float32
        samples.append(sample.numpy())
    return {
        "timesteps": scheduler.timesteps.numpy(),
        "samples": np.stack(samples),
    }


def main() -> None:
    """Make every trajectory."""
    arrays, metas = {}, []
    for number, (name, options, num_steps) in enumerate(CASES):
        result = trajectory(CLASSES[name](**options), num_steps)
        arrays |= {f"{number}.{key}": value for key, value in result.items()}
        config = {"_class_name": CLASSES[name].__name__} | options
        metas.append({"config": config, "num_steps": num_steps})
        print(config, num_steps, float(np.abs(result["samples"][-1]).mean()))
    np.savez_compressed(
        FOLDER / "schedulers.npz", meta=np.array(json.dumps(metas)), **arrays
    )


if __name__ == "__main__":
    main()
