"""Prompts and models that several commands take: the bundled ones, or the user's."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sixbit_jax.commands._names import BUNDLED_CHECKPOINT, RECIPES
from sixbit_jax.commands._networks import (
    Network,
    convert_and_load,
    is_converted,
    load_network,
    quantized_by,
)
from sixbit_jax.commands._tensors import read_prompt_file


class Prompts(NamedTuple):
    """What is sampled.

    Attributes:
      names: captions, or numbers.
      embeds: float32 [prompts, T, E].
      negative: embeddings of the negative prompt, [T, E]; None where a file has none.
      captions: whether `names` are captions of the demo.
      fields: masks and pooled embeddings, by field of `sampling.options.Prompt`.
    """

    names: tuple[str, ...]
    embeds: Any
    negative: Any
    captions: bool
    fields: dict[str, Any]


class Models(NamedTuple):
    """One network twice.

    Attributes:
      plain: with the checkpoint's own weights.
      quantized: with NVFP4 weights (the same object if they are its own).
    """

    plain: Network
    quantized: Network


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--quantized-model`, `--captions` or `--prompt-embeds`."""
    add_prompt_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="a converted checkpoint, or a diffusers directory (default: the bundled "
        "one)",
    )
    parser.add_argument(
        "--quantized-model",
        metavar="DIR",
        type=Path,
        help="the same model converted with --weights nvfp4 (default: rounded in "
        "memory)",
    )


def add_prompt_arguments(parser: Any) -> None:
    """`--captions` or `--prompt-embeds`, and `--as-given`."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--captions", nargs="+", metavar="TEXT", help="for the demo's networks"
    )
    prompts.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        type=Path,
        help="as in `sixbit sample`; each row is a prompt (needs --model)",
    )
    add_as_given_argument(parser)


def add_as_given_argument(parser: Any) -> None:
    """`--as-given`."""
    parser.add_argument(
        "--as-given",
        action="store_true",
        help="take prompts of another length as they are where the network's "
        "pipelines pad them (Wan: with zeros to 512 tokens)",
    )


def add_recipe_argument(parser: Any) -> None:
    """`--recipe`, for a parser or a group of its arguments."""
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="a whole method: quantizes the weights (in memory, unless those of the "
        "checkpoint are) and brings its own policy and options",
    )


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
    file = read_prompt_file(args.prompt_embeds)
    negative = None if file.negative is None else file.negative[0]
    numbers = tuple(f"prompt {i + 1}" for i in range(len(file.embeds)))
    return Prompts(numbers, file.embeds, negative, False, file.fields)


def caption_prompts(captions: Sequence[str]) -> Prompts:
    """Embeddings of captions for the demo's networks.

    Raises:
      ValueError: for captions that they do not know.
    """
    import numpy as np

    from sixbit_jax.demo.text import encode_captions
    from sixbit_jax.demo.vocabulary import parse_captions

    parse_captions(captions)
    *embeds, negative = encode_captions([*captions, ""])
    return Prompts(tuple(captions), np.stack(embeds), negative, True, {})


def calibration_prompts(count: int) -> tuple[str, ...]:
    """The captions of `--prompts N`.

    Raises:
      ValueError: for more than there are.
    """
    from sixbit_jax.demo.evaluate import calibration_captions

    try:
        return calibration_captions(count)
    except ValueError as error:
        raise ValueError(f"--prompts: {error}") from error


def load_models(
    args: argparse.Namespace, *, recipe: Any = None, second_guidance: float | None
) -> Models:
    """The model of `--model` with its own and with NVFP4 or the recipe's weights.

    Args:
      args: with the options of `add_model_arguments`.
      recipe: what `--recipe` names, or None.
      second_guidance: the value of `--guidance-2`.

    Raises:
      ValueError: if there is none, or `--quantized-model` is another network.
    """
    from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
    from sixbit_jax.sampling.api import is_quantized

    if recipe is not None and args.quantized_model is not None:
        raise ValueError("--recipe: expected no --quantized-model with it, found one")
    source = args.model or BUNDLED_CHECKPOINT
    plain = load_plain(source, second_guidance=second_guidance)
    if args.quantized_model is not None:
        quantized = load_network(args.quantized_model, second_guidance=second_guidance)
        if _kind(quantized) != _kind(plain):
            raise ValueError(
                f"--quantized-model {args.quantized_model}: expected the configuration "
                f"of {source}, found another one"
            )
        return Models(plain, quantized)
    if recipe is not None:
        return Models(plain, plain.changed(lambda m: quantized_by(recipe, m)))
    if is_quantized(plain.model):
        return Models(plain, plain)
    if not is_converted(source):
        # Rounded from the file's own dtype, as `sixbit convert` does.
        converted = convert_and_load(source, "nvfp4", second_guidance=second_guidance)
        return Models(plain, converted)
    refined = NVFP4Recipe(refine=True)
    return Models(plain, plain.changed(lambda model: quantize(model, refined)))


def _kind(network: Network) -> tuple[Any, ...]:
    # Not the files: they may leave out what has a default.
    low = network.low_noise
    boundary = None if low is None else low.boundary
    return type(network.model), network.model.config, boundary


def load_plain(source: Path, *, second_guidance: float | None = None) -> Network:
    """A network with the checkpoint's own weights.

    Args:
      source: a converted checkpoint, or a diffusers directory.
      second_guidance: the value of `--guidance-2`.
    """
    load = load_network if is_converted(source) else convert_and_load
    return load(source, second_guidance=second_guidance)
