"""Tensors of the command line: prompts, conditions and noise in safetensors files."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONDITIONS = ("image_latents", "image_embeds", "first_frames")


PROMPT_REST = {
    "prompt_attention_mask": "mask",
    "negative_prompt_attention_mask": "negative_mask",
    "pooled_prompt_embeds": "pooled",
    "negative_pooled_prompt_embeds": "negative_pooled",
}
"""Tensors besides the embeddings, by diffusers' names -> fields of `Prompt`."""


def rest_of(tensors: Mapping[str, Any], *, batched: bool) -> dict[str, Any]:
    """What prompts have besides embeddings, by field of `Prompt`.

    Args:
      tensors: of the file, by diffusers' names.
      batched: whether the file's embeddings have an axis of prompts; a mask or pooled
        embedding of one prompt is given one otherwise.
    """
    found = {
        field: tensors[name] for name, field in PROMPT_REST.items() if name in tensors
    }
    return {
        name: (value if batched else value[None]) > 0.5
        if name.endswith("mask")
        else value
        if batched
        else value[None]
        for name, value in found.items()
    }


def read_tensors(path: Path, *names: str) -> dict[str, Any]:
    """Some tensors of a safetensors file, float32.

    Raises:
      ValueError: if it is no safetensors file, lacks the first of them, or holds NaN
        or Inf in one of them.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path}: expected a safetensors file, found none")
    try:
        with safe_open(path, "flax") as file:
            held = sorted(file.keys())
            found = {name: file.get_tensor(name) for name in names if name in held}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file: {error}") from error
    if names[0] not in found:
        raise ValueError(
            f"{path}: expected the tensor {names[0]}, found {', '.join(held) or 'none'}"
        )
    arrays = {name: np.asarray(value, np.float32) for name, value in found.items()}
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(f"{path}: NaN or Inf in {', '.join(broken)}")
    return arrays


def condition_files(args: argparse.Namespace) -> tuple[Path | None, ...]:
    """The files that `--image-latents` and its like name."""
    return tuple(vars(args)[name] for name in CONDITIONS)


def read_conditions(args: argparse.Namespace, *, rows: int) -> dict[str, Any]:
    """The conditions of the command line, by field of `sampling.options.Conditions`.

    Args:
      args: the parsed arguments.
      rows: number of prompts.

    Raises:
      ValueError: for files that do not fit; lists all of them.
    """
    found, problems = {}, []
    for name, path in zip(CONDITIONS, condition_files(args), strict=True):
        if path is None:
            continue
        option = "--" + name.replace("_", "-")
        try:
            value = read_tensors(path, name)[name]
        except ValueError as error:
            problems.append(f"{option} {error}")
            continue
        if not value.ndim or len(value) != rows:
            problems.append(
                f"{option} {path}: expected a row for each of {rows} prompts, found "
                f"the shape {list(value.shape)}"
            )
        found[name] = value
    if problems:
        raise ValueError("\n  ".join(problems))
    return found
