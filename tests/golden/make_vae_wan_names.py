"""Makes `vae_wan_names.json`: diffusers' names of the original keys of Wan's VAE."""

import json
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

FILE = Path(__file__).parent / "vae_wan_names.json"
_BLOCK = ["residual.0.gamma", "residual.3.gamma"]
_BLOCK += [f"residual.{i}.{leaf}" for i in (2, 6) for leaf in ("weight", "bias")]
_LEAVES = ("weight", "bias")


def original_keys() -> list[str]:
    """All keys of the published file."""
    keys = [f"conv{i}.{leaf}" for i in (1, 2) for leaf in _LEAVES]
    for half in ("encoder", "decoder"):
        keys += [f"{half}.{x}.{leaf}" for x in ("conv1", "head.2") for leaf in _LEAVES]
        keys += [f"{half}.head.0.gamma", f"{half}.middle.1.norm.gamma"]
        keys += [f"{half}.middle.{i}.{name}" for i in (0, 2) for name in _BLOCK]
        keys += [
            f"{half}.middle.1.{name}.{leaf}"
            for name in ("to_qkv", "proj")
            for leaf in _LEAVES
        ]
    # Two blocks and a step in the encoder's levels, three and a step in the decoder's.
    for row, length, count, wider, temporal in (
        ("encoder.downsamples", 3, 11, (3, 6), (5, 8)),
        ("decoder.upsamples", 4, 15, (4,), (3, 7)),
    ):
        for i in range(count):
            names = list(_BLOCK)
            if i in wider:
                names += [f"shortcut.{leaf}" for leaf in _LEAVES]
            if i % length == length - 1:
                names = [f"resample.1.{leaf}" for leaf in _LEAVES]
                if i in temporal:
                    names += [f"time_conv.{leaf}" for leaf in _LEAVES]
            keys += [f"{row}.{i}.{name}" for name in names]
    return keys


def main() -> None:
    """Asks diffusers."""
    names = {}
    for key in original_keys():
        (name,) = convert_wan_vae_to_diffusers({key: torch.zeros(2)})
        names[key] = name
    FILE.write_text(json.dumps(names, indent=0) + "\n")


if __name__ == "__main__":
    main()
