"""Times video autoencoders at real size, with random weights.

    python -m benchmarks.vae --out FILE
    python -m benchmarks.vae --model wan-2.1 --only "chunk 1" --only torch --out FILE

Every job runs in a process of its own, one after the other, and so has its own peak of
memory. Decoders run in bf16: `stacked`, `framewise` and `conv3d` are the methods of
convolution, `whole chunks` is `stacked` without groups of frames, `kernels` is
`stacked` with GPU kernels for the sums of group normalization; of Wan, `chunk 1` and so
on decode with so many latent frames to a step. `encode` is the encoder in float32 and
bf16, `parts` times operations alone, `torch` is the PyTorch peer (diffusers where it is
installed, else the same decoder in plain PyTorch), eager, channels-last and compiled.
The results file is rewritten after every record.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.vae.jobs import run_job
from benchmarks.vae.subjects import JOBS, SUBJECTS, TORCH, jobs_of
from sixbit_jax.benchmark import records

PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "torch", "diffusers")
_SIDES = ("frames", "height", "width")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SUBJECTS, default="cogvideox")
    parser.add_argument("--config", type=Path, help="config.json, of another network")
    for name in _SIDES:
        text = "of the latents (the model's default video)"
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs (3)")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument(
        "--only", action="append", default=[], choices=JOBS, help="jobs to run (all)"
    )
    parser.add_argument("--timeout", type=float, default=300, help="s per job (300)")
    parser.add_argument("--commit", help="for machines without the repository")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name, size in zip(_SIDES, SUBJECTS[args.model].size, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, size)
    return args


def words_of(args: argparse.Namespace) -> list[str]:
    """The options that say what is timed."""
    found = ["--model", args.model]
    found += [] if args.config is None else ["--config", str(args.config)]
    for name in (*_SIDES, "repeats"):
        found += [f"--{name}", str(getattr(args, name))]
    return found


def spawn(args: argparse.Namespace, job: str) -> Iterator[dict[str, Any]]:
    """Records of one job, from a process with the device to itself."""
    command = [sys.executable, "-m", "benchmarks.vae", *words_of(args), "--out", "-"]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        ended = subprocess.run(
            [*command, "--job", job],
            env=environment,
            capture_output=True,
            text=True,
            timeout=args.timeout,
            check=False,
        )
        text, problem = ended.stdout, ended.stderr[-300:] if ended.returncode else None
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        text = text if isinstance(text, str) else text.decode()
        problem = f"stopped after {args.timeout:.0f} s"
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
    if problem is not None:
        yield {"program": job, "failure": problem}


def main(argv: list[str] | None = None) -> int:
    """Runs the jobs; returns 0 if every one gave a record without failure."""
    args = parse(argv)
    if args.job is not None:
        # Of PyTorch's job JAX stays out of the device's memory.
        machine = {} if args.job == TORCH else {"machine": records.machine()}
        for record in run_job(args):
            print(json.dumps(record | machine), flush=True)
        return 0
    found: list[dict[str, Any]] = []
    machine = "unknown"
    size: dict[str, Any] = {
        "model": args.model if args.config is None else args.config.stem
    }
    size |= {name: getattr(args, name) for name in _SIDES}
    only = [word for name in args.only for word in ("--only", name)]
    command = ["python", "-m", "benchmarks.vae", *words_of(args), *only]
    jobs = jobs_of(SUBJECTS[args.model])
    for job in [job for job in jobs if not args.only or job in args.only]:
        for record in spawn(args, job):
            machine = record.pop("machine", machine)
            found.append(size | record)
            print(json.dumps(record), file=sys.stderr, flush=True)
            head = records.header(
                [*command, "--out", args.out.name],
                commit_id=args.commit,
                machine_name=machine,
                packages=PACKAGES,
            )
            records.write(args.out, head, found)
    return int(not found or any("failure" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
