"""Times the decoder of a video autoencoder at real size, with random weights.

    python -m benchmarks.vae --out FILE
    python -m benchmarks.vae --model hunyuan-video --only framewise --out F

Every job runs in a process of its own, one after the other: `stacked`, `framewise` and
`conv3d` are the methods of convolution, each the whole decoder in bf16, `kernels` is
`stacked` with GPU kernels for the sums of group normalization; of CogVideoX, `parts`
times its operations alone, and `torch` is the PyTorch peer (diffusers where it
is installed, else the same network in plain PyTorch), eager, channels-last and
compiled. The results file is rewritten after every record.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sixbit_jax.benchmark import records
from sixbit_jax.vae.causal_conv import METHODS

KERNELS, PARTS, TORCH = "kernels", "parts", "torch"
DECODERS = (*METHODS, KERNELS)
JOBS = (*DECODERS, PARTS, TORCH)
PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "torch", "diffusers")
# Latent frames, height and width: 49 frames of 480x720, 129 frames of 720x1280.
SIZES = {"cogvideox": (13, 60, 90), "hunyuan-video": (33, 90, 160)}
# A small video whose float32 frames say how far the bf16 ones are.
_CHECKED = (3, 16, 24)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="cogvideox")
    parser.add_argument("--config", type=Path, help="config.json (the published one)")
    for name in ("frames", "height", "width"):
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
    for name, size in zip(
        ("frames", "height", "width"), SIZES[args.model], strict=True
    ):
        if getattr(args, name) is None:
            setattr(args, name, size)
    return args


def network_of(model: str) -> Any:
    """The autoencoder's class."""
    if model == "hunyuan-video":
        from sixbit_jax.vae.hunyuan_video import AutoencoderKLHunyuanVideo

        return AutoencoderKLHunyuanVideo
    from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX


def network_config(args: argparse.Namespace) -> Any:
    """The configuration to time."""
    config = network_of(args.model).config_class
    if args.config is None:
        return config()
    return config.from_dict(json.loads(args.config.read_text()))


def random_vae(network: Any, config: Any, dtype: Any) -> Any:
    """An autoencoder of random weights on the device, made by one program."""
    import jax
    from flax import nnx

    @jax.jit
    def make() -> Any:
        state = nnx.state(network(config, rngs=nnx.Rngs(0)))
        return jax.tree.map(lambda leaf: leaf.astype(dtype), state)

    graph = nnx.graphdef(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, make())


def _latents(config: Any, size: tuple[int, int, int], dtype: Any) -> Any:
    import jax

    frames, height, width = size
    shape = (1, frames, config.latent_channels, height, width)
    return jax.random.normal(jax.random.key(1), shape, dtype)


def _seconds(decode: Any) -> tuple[float, float]:
    """Seconds until the first frames, and until all of them."""
    import jax

    started = time.perf_counter()
    first = 0.0
    for chunk in decode():
        jax.block_until_ready(chunk)
        first = first or time.perf_counter() - started
    return first, time.perf_counter() - started


def time_decoder(args: argparse.Namespace, job: str) -> Iterator[dict[str, Any]]:
    """One record of the whole decoder, computed in one way."""
    import jax
    import jax.numpy as jnp

    from sixbit_jax.vae.streaming import decode_stream

    config = network_config(args)
    vae = random_vae(network_of(args.model), config, jnp.bfloat16)
    latents = _latents(config, (args.frames, args.height, args.width), jnp.bfloat16)

    how: Any = {"kernels": True} if job == KERNELS else {"method": job}

    def decode() -> Iterator[Any]:
        return decode_stream(vae, latents, output="uint8", **how)

    _, compiling = _seconds(decode)
    runs = [_seconds(decode) for _ in range(args.repeats)]
    stats = jax.devices()[0].memory_stats() or {}
    seconds = statistics.median(run[1] for run in runs)
    record = {
        "program": job,
        "first_frames_s": statistics.median(run[0] for run in runs),
        "decode_s": seconds,
        "compile_s": compiling - seconds,
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }
    if args.model == "cogvideox":
        flops = decoder_flops(config, (args.frames, args.height, args.width))
        record["tflops"] = flops / seconds / 1e12
    # After the peak was read.
    small = _latents(config, _CHECKED, jnp.float32)
    with jax.default_matmul_precision("highest"):
        exact = _joined(decode_stream(vae, small, dtype=jnp.float32))
    found = _joined(decode_stream(vae, small, **how))
    error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    yield record | {"relative_error": float(error)}


def _joined(chunks: Iterator[Any]) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate([chunk.astype(jnp.float32) for chunk in chunks], axis=1)


def decoder_flops(config: Any, size: tuple[int, int, int]) -> float:
    """Of the 3x3x3 and 3x3 convolutions of CogVideoX's decoder.

    As the published network does them: upsampled frames are all convolved.
    """
    frames, height, width = size
    widths = config.block_out_channels[::-1]
    pixels = frames * height * width
    taps = 27 * pixels * (config.latent_channels + 4 * widths[0]) * widths[0]
    for level, outputs in enumerate(widths):
        inputs = widths[max(level - 1, 0)]
        blocks = inputs + (2 * config.layers_per_block + 1) * outputs
        taps += 27 * pixels * blocks * outputs
        if level < len(widths) - 1:
            if level < config.time_levels:
                frames = 2 * frames - (frames % 2)
            height, width = 2 * height, 2 * width
            pixels = frames * height * width
            taps += 9 * pixels * outputs * outputs
    taps += 27 * pixels * widths[-1] * config.out_channels
    return 2.0 * taps


def run_job(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Records of one job, in this process."""
    if args.job == PARTS:
        from benchmarks.vae_parts import time_parts

        yield from time_parts(network_config(args), args.height, args.width)
    elif args.job == TORCH:
        from benchmarks.vae_torch import time_peers

        size = (args.frames, args.height, args.width)
        yield from time_peers(network_config(args), size, args.repeats)
    else:
        yield from time_decoder(args, args.job)


def _words(args: argparse.Namespace) -> list[str]:
    found = ["--model", args.model]
    found += [] if args.config is None else ["--config", str(args.config)]
    for name in ("frames", "height", "width", "repeats"):
        found += [f"--{name}", str(getattr(args, name))]
    return found


def _spawn(args: argparse.Namespace, job: str) -> Iterator[dict[str, Any]]:
    """Records of one job, from a process with the device to itself."""
    command = [sys.executable, "-m", "benchmarks.vae", *_words(args), "--out", "-"]
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
    size = {
        "model": args.model,
        "frames": args.frames,
        "height": args.height,
        "width": args.width,
    }
    only = [word for name in args.only for word in ("--only", name)]
    command = ["python", "-m", "benchmarks.vae", *_words(args), *only]
    jobs = JOBS if args.model == "cogvideox" else DECODERS
    for job in [job for job in jobs if not args.only or job in args.only]:
        for record in _spawn(args, job):
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
