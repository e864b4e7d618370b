"""`--devices` and `--mesh`: which devices share a video."""

import argparse
from typing import Any

from sixbit_jax.commands import _numbers

_EXAMPLE = "guidance=2,sequence=4"


def add_arguments(group: Any) -> None:
    """The two options; at most one of them may be given."""
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--devices",
        metavar="N",
        type=_numbers.whole(1, _numbers.MAX_COUNT),
        help="that share one video: guidance branches first, then tokens (1)",
    )
    choice.add_argument(
        "--mesh",
        metavar=_EXAMPLE,
        type=sizes_of,
        help="what they share: guidance (branches), sequence (tokens), fsdp (weights)",
    )


def sizes_of(text: str) -> dict[str, int]:
    """Devices by axis, of guidance=2,sequence=4.

    Raises:
      argparse.ArgumentTypeError: it has another form.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, sign, size = part.partition("=")
        if not sign or not size.isdecimal() or name in found:
            raise argparse.ArgumentTypeError(f"expected as {_EXAMPLE}, found {text!r}")
        found[name] = int(size)
    return found


def mesh_of(args: argparse.Namespace, heads: int, *, guided: bool) -> Any:
    """The mesh that was asked for, or None.

    Args:
      args: the command line.
      heads: attention heads of the network.
      guided: whether there are two guidance branches.

    Raises:
      ValueError: it does not fit the network, or there are too few devices.
    """
    if args.devices is None and args.mesh is None:
        return None
    from sixbit_jax.meshes import default_sizes, make_mesh

    sizes = args.mesh
    if sizes is None:
        sizes = default_sizes(args.devices, heads, guided=guided)
    return make_mesh(sizes)


__all__ = ["add_arguments", "mesh_of", "sizes_of"]
