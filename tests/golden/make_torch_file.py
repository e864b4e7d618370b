"""Makes `torch_file/`: what torch.save writes, and the bytes that torch reads back."""

import json
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "torch_file"


def tensors() -> dict[str, torch.Tensor]:
    """Views, shared storages, parameters, and one tensor of every dtype."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    made = {
        "base": base,
        "transposed": base.T,
        "row": base[2],
        "columns": base[:, 1::2],
        "expanded": base[1:2].expand(3, 6),
        "parameter": torch.nn.Parameter(base[:2] * 2),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.arange(48.0)
        .reshape(1, 3, 4, 4)
        .to(memory_format=torch.channels_last),
    }
    for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.bool,
    ):
        made[str(dtype).removeprefix("torch.")] = (base[:2] * 3).to(dtype)
    return made


def main() -> None:
    """Writes both files."""
    FOLDER.mkdir(exist_ok=True)
    torch.save(tensors(), FOLDER / "weights.pt")
    back = torch.load(FOLDER / "weights.pt", weights_only=True)
    # As bytes: NumPy has no bfloat16 of its own.
    stored = {
        name: value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        if value.numel()
        else np.zeros(0, np.uint8)
        for name, value in back.items()
    }
    facts = {
        name: [str(value.dtype).removeprefix("torch."), list(value.shape)]
        for name, value in back.items()
    }
    np.savez_compressed(FOLDER / "expected.npz", facts=json.dumps(facts), **stored)


if __name__ == "__main__":
    main()
