"""`sixbit convert`: the converter's own command line, under this name."""

import argparse

from convert.command import DESCRIPTION, cli_arguments
from convert.command import run as run_converter
from sixbit_jax.cli import USER_ERROR
from sixbit_jax.commands._names import RECIPES

EPILOG = """\
examples:
  sixbit convert CogVideoX-5b cogvideox-5b-nvfp4 --weights nvfp4
  sixbit convert CogVideoX-5b cogvideox-5b-dvd --recipe dvd-quant
  sixbit convert CogVideoX-2b cogvideox-2b --dtype bfloat16
  sixbit convert cogvideox-5b-nvfp4 exported --to-diffusers
"""

__all__ = ["DESCRIPTION", "EPILOG", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    cli_arguments(parser)
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="the weights of a whole method, instead of --weights, --rotation and "
        "--refine",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; the converter words its own errors.

    Raises:
      ValueError: --recipe beside an option that it stands for, or a recipe whose
        weights need more than the weights themselves.
    """
    if args.recipe is not None:
        _apply_recipe(args)
    return USER_ERROR if run_converter(args) else 0


def _apply_recipe(args: argparse.Namespace) -> None:
    from sixbit_jax.recipes import recipe_of

    others = (args.weights != "keep", args.rotation is not None, args.refine)
    if any(others) or args.to_diffusers:
        raise ValueError(
            "--recipe: expected no --weights, --rotation, --refine and --to-diffusers "
            "with it"
        )
    recipe = recipe_of(args.recipe)
    if recipe.quantizer is not None:
        raise ValueError(
            f"--recipe {recipe.name}: its weights are not made from weights alone"
        )
    args.weights = recipe.weights
