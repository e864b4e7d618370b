"""Checks the converter against diffusers itself. Needs torch and diffusers.

    python -m tests.golden.check_to_diffusers save CASE SRC [DTYPE] [SHARD_SIZE]
    python -m convert SRC OURS
    python -m convert OURS BACK --to-diffusers
    python -m tests.golden.check_to_diffusers compare CASE SRC BACK

`save` lets diffusers write the weights of a golden case; `compare` lets diffusers load
both directories and prints the relative L2 distance of their outputs, and whether all
tensors are equal.
"""

import sys

import numpy as np
import torch
from diffusers import CogVideoXTransformer3DModel

from tests.golden.cases import load
from tests.golden.make_cogvideox import run


def save(case_name: str, path: str, dtype: str = "float32", size: str = "5GB") -> None:
    """Writes a golden case's weights with diffusers' `save_pretrained`."""
    case = load(case_name)
    model = CogVideoXTransformer3DModel.from_config(case.config)
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    model.load_state_dict(weights, strict=True)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=size)


def compare(case_name: str, source: str, back: str) -> None:
    """Loads both directories with diffusers and prints how their outputs differ."""
    inputs = load(case_name).inputs()
    models = [
        CogVideoXTransformer3DModel.from_pretrained(path).eval()
        for path in (source, back)
    ]
    states = [model.state_dict() for model in models]
    same = states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )
    outputs = [run(model, inputs, torch.float32) for model in models]
    distance = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    print(f"tensors equal: {same}; relative L2 of the outputs: {distance:.2e}")


if __name__ == "__main__":
    {"save": save, "compare": compare}[sys.argv[1]](*sys.argv[2:])
