"""Prompts and models that several commands take: the bundled ones, or the user's."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sixbit_jax.commands._names import BUNDLED_CHECKPOINT, RECIPES


class Prompts(NamedTuple):
    """What is sampled.

    Attributes:
      names: captions, or numbers.
      embeds: float32 [prompts, T, E].
      negative: of the negative prompt, [T, E]; None where a file has none.
    """

    names: tuple[str, ...]
    embeds: Any
    negative: Any


class Models(NamedTuple):
    """One network twice, and its header.

    Attributes:
      plain: with the checkpoint's own weights.
      quantized: with NVFP4 weights (the same object if they are its own).
      header: of the checkpoint.
    """

    plain: Any
    quantized: Any
    header: Any


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--quantized-model`, `--captions` or `--prompt-embeds`."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--captions", nargs="+", metavar="TEXT", help="for the bundled model"
    )
    prompts.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        type=Path,
        help="as in `sixbit sample`; each row is a prompt (needs --model)",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="a converted checkpoint, or a diffusers directory of the demo's kind "
        "with --captions (default: the bundled one)",
    )
    parser.add_argument(
        "--quantized-model",
        metavar="DIR",
        type=Path,
        help="the same model converted with --weights nvfp4 (default: rounded in "
        "memory)",
    )


def add_recipe_argument(parser: Any) -> None:
    """`--recipe`, for a parser or a group of its arguments."""
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="a whole method: quantizes the weights (in memory, unless those of the "
        "checkpoint are) and brings its own policy and options",
    )


def quantized_by(recipe: Any, model: Any) -> Any:
    """The model with the recipe's weights; weights that are stored stay as they are."""
    from sixbit_jax.sampling.api import is_quantized

    return model if is_quantized(model) else recipe.quantize(model)


def read_prompts(args: argparse.Namespace, default: Sequence[str]) -> Prompts:
    """The prompts of `--captions` or `--prompt-embeds`.

    Raises:
      ValueError: for captions or files that do not fit, and for embeddings without a
        model of their own.
    """
    if args.prompt_embeds is None:
        return caption_prompts(args.captions or default)
    if args.model is None:
        raise ValueError("--prompt-embeds: expected --model with it, found none")
    from sixbit_jax.commands.sample import read_tensors

    names = ("prompt_embeds", "negative_prompt_embeds")
    tensors = read_tensors(args.prompt_embeds, *names)
    embeds, negative = tensors[names[0]], tensors.get(names[1])
    embeds = embeds[None] if embeds.ndim == 2 else embeds
    if negative is not None and negative.ndim == 3:
        negative = negative[0]
    numbers = tuple(f"prompt {i + 1}" for i in range(len(embeds)))
    return Prompts(numbers, embeds, negative)


def caption_prompts(captions: Sequence[str]) -> Prompts:
    """Embeddings of captions for the bundled model.

    Raises:
      ValueError: for captions that it does not know.
    """
    import numpy as np

    from sixbit_jax.demo.text import encode_captions
    from sixbit_jax.demo.vocabulary import parse_captions

    parse_captions(captions)
    *embeds, negative = encode_captions([*captions, ""])
    return Prompts(tuple(captions), np.stack(embeds), negative)


def load_models(args: argparse.Namespace) -> Models:
    """The model of `--model` with its own and with NVFP4 or the recipe's weights.

    Raises:
      ValueError: if there is none, or `--quantized-model` is another network.
    """
    from sixbit_jax.checkpoint import load
    from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
    from sixbit_jax.recipes import recipe_of
    from sixbit_jax.sampling.api import is_quantized

    recipe = getattr(args, "recipe", None)
    if recipe is not None and args.quantized_model is not None:
        raise ValueError("--recipe: expected no --quantized-model with it, found one")
    source = args.model or BUNDLED_CHECKPOINT
    quantized = None
    if (source / "sixbit.json").is_file():
        plain, header = load(source)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            plain, header = _converted(source, Path(scratch) / "model", "keep")
            if args.quantized_model is None and recipe is None:
                quantized, _ = _converted(source, Path(scratch) / "nvfp4", "nvfp4")
    if args.quantized_model is not None:
        quantized, _ = load(args.quantized_model)
        networks: list[Any] = [quantized, plain]
        # Not the files: they may leave out what has a default.
        first, second = ((type(network), network.config) for network in networks)
        if first != second:
            raise ValueError(
                f"--quantized-model {args.quantized_model}: expected the configuration "
                f"of {source}, found another one"
            )
    if quantized is None:
        if recipe is not None:
            quantized = quantized_by(recipe_of(recipe), plain)
        else:
            refined = NVFP4Recipe(refine=True)
            quantized = plain if is_quantized(plain) else quantize(plain, refined)
    return Models(plain, quantized, header)


def load_plain(source: Path) -> tuple[Any, Any]:
    """A model with the checkpoint's own weights, and its header.

    Args:
      source: a converted checkpoint, or a diffusers directory.
    """
    from sixbit_jax.checkpoint import load

    if (source / "sixbit.json").is_file():
        return load(source)
    with tempfile.TemporaryDirectory() as scratch:
        return _converted(source, Path(scratch) / "model", "keep")


def _converted(source: Path, destination: Path, weights: Any) -> tuple[Any, Any]:
    from convert import convert
    from sixbit_jax.checkpoint import load

    convert(source, destination, weights=weights, refine=weights == "nvfp4")
    return load(destination)
