"""The `sixbit` command: finds the subcommand, runs it, and words its errors."""

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence

COMMANDS = {
    "demo": "sample the bundled model: videos, trace and report",
    "convert": "convert a PyTorch (diffusers) checkpoint, or back",
    "inspect": "say what a checkpoint directory holds",
    "sample": "prompt embeddings in, latents out",
    "compare": "the same captions and seeds under two configurations",
    "calibrate": "fit a policy to a model and write it as JSON",
    "tune": "quantize to few bits and distil what was lost (Q-VDiT)",
    "bench": "time the sampler at real size on this device",
}
USER_ERROR = 2


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of the command that `argv` names.

    Other commands are listed only: their modules are not imported.
    """
    parser = argparse.ArgumentParser(
        prog="sixbit",
        description="Video diffusion transformers in JAX with 4.5-bit weights, "
        "per-step NVFP4/INT8 activations and a Temporal Delta Cache.",
        epilog="`sixbit COMMAND --help` explains a command. Start with `sixbit demo`.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"sixbit_jax.commands.{name}")
        sub = commands.add_parser(
            name,
            help=summary,
            description=_wrapped(module.DESCRIPTION),
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
        sub.set_defaults(run=module.run)
    return parser


def _wrapped(text: str) -> str:
    """Paragraphs filled to the terminal's usual width; indented ones stay."""
    return "\n\n".join(
        part if "\n " in part else textwrap.fill(part, 79)
        for part in text.strip().split("\n\n")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sixbit`.

    Args:
      argv: the arguments; None takes those of the process.

    Returns:
      Exit status: 0, 2 after an error in what was asked for (one message on standard
      error; `--debug` raises it instead), 130 after an interrupt.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv).parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (`head`, a pager) left. Nobody is there to read more, not even
        # what the interpreter flushes when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"sixbit {args.command}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except RuntimeError as error:
        # JAX's only sign of a full device; other runtime errors are bugs.
        if args.debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"sixbit {args.command}: error: not enough device memory; NVFP4 weights "
            "(`sixbit convert --weights nvfp4`), a smaller video or fewer of them need "
            f"less. {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"\nsixbit {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
