"""The `sixbit` command: finds the subcommand, runs it, and words its errors."""

import argparse
import importlib
import io
import os
import sys
import textwrap
from collections.abc import Sequence

COMMANDS = {
    "demo": "sample the bundled model: videos, trace and report",
    "convert": "convert a PyTorch (diffusers) checkpoint, or back",
    "pair": "join two converted networks (Wan2.2-A14B) into one directory",
    "inspect": "say what a checkpoint directory holds",
    "generate": "prompts in, video files out",
    "sample": "prompt embeddings in, latents out",
    "compare": "the same captions and seeds under two configurations",
    "calibrate": "fit a policy to a model and write it as JSON",
    "tune": "quantize to few bits and distil what was lost (Q-VDiT)",
    "doctor": "what each GPU operation runs as on this device, and why",
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


def _open_streams() -> None:
    """Makes text that no encoding has no reason to fail, and a lost stderr silent."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush_stdout() -> str | None:
    """Writes out what was printed; says why that was not possible.

    After a failure the interpreter has nothing left to write when it exits.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output: expected a place to print to, found {error}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sixbit`.

    Args:
      argv: the arguments; None takes those of the process.

    Returns:
      Exit status: 0, 2 after an error in what was asked for (one message on standard
      error; `--debug` raises it instead), 130 after an interrupt.
    """
    argv = sys.argv[1:] if argv is None else argv
    _open_streams()
    if sys.stdout is None:
        _complain("sixbit", "standard output: expected a place to print to, found none")
        return USER_ERROR
    name = "sixbit"
    try:
        args = build_parser(argv).parse_args(argv)
        name = f"sixbit {args.command}"
        status = _run(args, name)
    except SystemExit:  # after help, or after a usage error
        if (problem := _flush_stdout()) is not None:
            _complain(name, problem)
            return USER_ERROR
        raise
    problem = _flush_stdout()
    # A command that could not print has said so already.
    if problem is not None and status != USER_ERROR:
        _complain(name, problem)
        return USER_ERROR
    return status


def _complain(name: str, message: str) -> None:
    print(f"{name}: error: {message}", file=sys.stderr)


def _run(args: argparse.Namespace, name: str) -> int:
    """Runs the command and words its errors."""
    try:
        return args.run(args)
    except (BrokenPipeError, SystemExit):
        # rich ends the process when the reader of its tables has gone.
        _complain(name, "standard output: expected a reader, found that it has gone")
        return USER_ERROR
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        _complain(name, str(error))
        return USER_ERROR
    except MemoryError as error:
        if args.debug:
            raise
        _complain(
            name, f"not enough memory; a smaller video needs less. {error}".strip()
        )
        return USER_ERROR
    except RuntimeError as error:
        # JAX's only sign of a full device; other runtime errors are bugs.
        if args.debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _complain(
            name,
            "not enough device memory; NVFP4 weights (`sixbit convert --weights "
            "nvfp4`), a smaller video or fewer of them need less. "
            f"{str(error).splitlines()[0]}",
        )
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
