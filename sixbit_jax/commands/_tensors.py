"""Tensors of the command line: prompts, conditions and noise in safetensors files."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

CONDITIONS = ("image_latents", "image_embeds", "first_frames")


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


_PROMPT_FIELDS = {
    "prompt_attention_mask": "mask",
    "pooled_prompt_embeds": "pooled",
    "negative_prompt_attention_mask": "negative_mask",
    "negative_pooled_prompt_embeds": "negative_pooled",
}
"""Tensors of a prompt file, by diffusers' name, and the fields of `Prompt`."""


class PromptFile(NamedTuple):
    """What a file of prompts holds.

    Attributes:
      embeds: [prompts, T, E].
      negative: [rows, T, E], or None.
      fields: masks and pooled embeddings, by field of `sampling.options.Prompt`.
    """

    embeds: Any
    negative: Any
    fields: dict[str, Any]

    def chosen(self, *, guided: bool) -> dict[str, Any]:
        """The fields of a run; without guidance, none of the negative prompt."""
        return chosen_fields(self.fields, guided=guided)


def chosen_fields(fields: dict[str, Any], *, guided: bool) -> dict[str, Any]:
    """The fields of a run; without guidance, none of the negative prompt."""
    return {k: v for k, v in fields.items() if guided or not k.startswith("negative")}


def read_prompt_file(path: Path) -> PromptFile:
    """Reads a file of prompt embeddings.

    Raises:
      ValueError: if it is none, or the embeddings are of another rank.
    """
    tensors = read_tensors(
        path, "prompt_embeds", "negative_prompt_embeds", *_PROMPT_FIELDS
    )
    embeds = _batched(tensors["prompt_embeds"])
    if embeds.ndim != 3 or not len(embeds):
        raise ValueError(
            f"{path}: prompt_embeds: expected [batch, tokens, E], found "
            f"{list(embeds.shape)}"
        )
    negative = tensors.get("negative_prompt_embeds")
    fields = {
        ours: tensors[name] for name, ours in _PROMPT_FIELDS.items() if name in tensors
    }
    for name in ("mask", "negative_mask"):
        if name in fields:
            fields[name] = fields[name] > 0
    return PromptFile(embeds, None if negative is None else _batched(negative), fields)


def _batched(embeds: Any) -> Any:
    return embeds[None] if embeds.ndim == 2 else embeds


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
