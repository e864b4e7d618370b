"""What the golden scripts of video autoencoders share: running diffusers' network."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch

from tests.golden.vae_cases import ROOT, VaeCase

_EMPTY = np.zeros(0, np.float32)


def _run(model: Any, case: VaeCase, dtype: torch.dtype) -> VaeCase:
    model = model.to(dtype)

    def channels_first(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(dtype).transpose(1, 2)

    with torch.no_grad():
        decoded = model.decode(channels_first(case.latents())).sample
        moments = model.encode(channels_first(case.video())).latent_dist
    parts = (decoded, moments.mean, moments.logvar)
    found = (part.transpose(1, 2).contiguous().numpy() for part in parts)
    return replace(case, **dict(zip(("decoded", "mean", "logvar"), found, strict=True)))


def make(
    folder: str,
    name: str,
    model: Any,
    *,
    latent_shape: tuple[int, ...],
    video_shape: tuple[int, ...],
    tiles: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Runs one case, writes its file, and returns what to print about it.

    `tiles` are the options of diffusers' `enable_tiling`; None leaves it off.
    """
    tiled = tiles is not None
    config = {
        "_class_name": type(model).__name__,
        "_diffusers_version": diffusers.__version__,
    } | {key: value for key, value in model.config.items() if key[0] != "_"}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    case = VaeCase(
        name, config, shapes, latent_shape, video_shape, tiled, _EMPTY, _EMPTY, _EMPTY
    )
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    model.load_state_dict(weights, strict=True)
    if tiles is not None:
        model.enable_tiling(**tiles)
    model.eval()
    case = _run(model, case, torch.float32)
    exact = _run(model, case, torch.float64)
    parts = ("decoded", "mean", "logvar")
    arrays = {part: getattr(case, part) for part in parts}
    errors = {
        f"{part}_float64_error": float(
            np.linalg.norm(arrays[part] - getattr(exact, part))
            / np.linalg.norm(getattr(exact, part))
        )
        for part in parts
    }
    meta = {
        "config": config,
        "shapes": shapes,
        "latent_shape": latent_shape,
        "video_shape": video_shape,
        "tiled": tiled,
    }
    (ROOT / folder).mkdir(exist_ok=True)
    path = ROOT / folder / f"{name}.npz"
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    return {"case": name, "std": float(case.decoded.std())} | errors
