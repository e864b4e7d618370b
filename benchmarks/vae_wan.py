"""Times the Wan autoencoder at real size, with random weights.

    python -m benchmarks.vae_wan --out FILE
    python -m benchmarks.vae_wan --model wan-2.2 --height 44 --width 80 --out FILE

Every job runs in a process of its own, one after the other, and so has its own peak of
memory. `chunk 1` and so on decode in bf16 with so many latent frames to a step,
`framewise` and `conv3d` with other methods of convolution; `encode` is the encoder in
float32 and bf16; `parts` times the decoder's operations alone; `torch` is the PyTorch
peer (diffusers where it is installed, else the same decoder in plain PyTorch), eager,
channels-last and compiled. The results file is rewritten after every record.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sixbit_jax.benchmark import records

# Name -> options of `decode_stream`.
DECODERS: dict[str, dict[str, Any]] = {
    "chunk 1": {"chunk": 1},
    "chunk 2": {"chunk": 2},
    "chunk 3": {"chunk": 3},
    "chunk 7": {"chunk": 7},
    "framewise": {"chunk": 1, "method": "framewise"},
    "conv3d": {"chunk": 1, "method": "conv3d"},
}
ENCODE, PARTS, TORCH = "encode", "parts", "torch"
JOBS = (*DECODERS, ENCODE, PARTS, TORCH)
PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "torch", "diffusers")
_WAN_22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
MODELS: dict[str, dict[str, Any]] = {"wan-2.1": {}, "wan-2.2": _WAN_22}
# A small video whose float32 frames say how far the bf16 ones are.
_CHECKED = (3, 16, 24)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="wan-2.1")
    parser.add_argument("--config", type=Path, help="config.json, of another network")
    parser.add_argument("--frames", type=int, default=21, help="latent frames (21)")
    parser.add_argument("--height", type=int, default=60, help="of the latents (60)")
    parser.add_argument("--width", type=int, default=104, help="of the latents (104)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs (3)")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument(
        "--only", action="append", default=[], choices=JOBS, help="jobs to run (all)"
    )
    parser.add_argument("--timeout", type=float, default=300, help="s per job (300)")
    parser.add_argument("--commit", help="for machines without the repository")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def network_config(args: argparse.Namespace) -> Any:
    """The configuration to time."""
    from sixbit_jax.vae.wan_config import WanVAEConfig

    if args.config is None:
        return WanVAEConfig.from_dict(MODELS[args.model])
    return WanVAEConfig.from_dict(json.loads(args.config.read_text()))


def random_vae(config: Any, dtype: Any) -> Any:
    """An autoencoder of random weights on the device, made by one program."""
    import jax
    from flax import nnx

    from sixbit_jax.vae.wan import AutoencoderKLWan

    @jax.jit
    def make() -> Any:
        state = nnx.state(AutoencoderKLWan(config, rngs=nnx.Rngs(0)))
        return jax.tree.map(lambda leaf: leaf.astype(dtype), state)

    graph = nnx.graphdef(
        nnx.eval_shape(lambda: AutoencoderKLWan(config, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graph, make())


def _latents(config: Any, size: tuple[int, int, int], dtype: Any) -> Any:
    import jax

    frames, height, width = size
    shape = (1, frames, config.z_dim, height, width)
    return jax.random.normal(jax.random.key(1), shape, dtype)


def _timed(call: Callable[[], Iterator[Any]], repeats: int) -> dict[str, Any]:
    """Seconds until the first part of a result and until all of it, and the peak."""
    import jax

    def run() -> tuple[float, float]:
        started, first = time.perf_counter(), 0.0
        for part in call():
            # As a pipeline does it: the next step may be in flight already.
            jax.block_until_ready(part)
            first = first or time.perf_counter() - started
        return first, time.perf_counter() - started

    _, compiling = run()
    runs = [run() for _ in range(repeats)]
    stats = jax.devices()[0].memory_stats() or {}
    seconds = statistics.median(total for _, total in runs)
    return {
        "first_s": statistics.median(first for first, _ in runs),
        "seconds": seconds,
        "compile_s": compiling - seconds,
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }


def _joined(parts: Iterator[Any]) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)


def time_decoder(args: argparse.Namespace, name: str) -> Iterator[dict[str, Any]]:
    """One record of the whole decoder."""
    import jax
    import jax.numpy as jnp

    from sixbit_jax.vae.wan import decode_stream

    config, options = network_config(args), DECODERS[name]
    vae = random_vae(config, jnp.bfloat16)
    size = (args.frames, args.height, args.width)
    latents = _latents(config, size, jnp.bfloat16)
    timed = _timed(
        lambda: decode_stream(vae, latents, output="uint8", **options), args.repeats
    )
    timed["decode_s"] = timed.pop("seconds")
    flops = decoder_flops(config, size)
    record = {"program": name, **options, **timed}
    record |= {"tflops": flops / timed["decode_s"] / 1e12, "flops": flops}
    # After the peak was read.
    small = _latents(config, _CHECKED, jnp.float32)
    with jax.default_matmul_precision("highest"):
        exact = _joined(decode_stream(vae, small, dtype=jnp.float32))
    found = _joined(decode_stream(vae, small, **options))
    error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    yield record | {"relative_error": float(error)}


def time_encoder(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record of the whole encoder for each precision."""
    import jax
    import jax.numpy as jnp

    from sixbit_jax.vae.wan import encode

    config = network_config(args)
    vae = random_vae(config, jnp.float32)
    ratio = config.scale_factor_spatial
    frames = config.scale_factor_temporal * (args.frames - 1) + 1
    shape = (1, frames, 3, ratio * args.height, ratio * args.width)
    video = jax.random.uniform(jax.random.key(2), shape, jnp.bfloat16, -1.0, 1.0)
    # bf16 first: the peak only rises.
    for dtype in (jnp.bfloat16, jnp.float32):
        timed = _timed(
            lambda dtype=dtype: iter([encode(vae, video, dtype=dtype)]), args.repeats
        )
        timed["encode_s"] = timed.pop("seconds")
        del timed["first_s"]
        yield {"program": f"encode, {jnp.dtype(dtype).name}", **timed}


def decoder_flops(config: Any, size: tuple[int, int, int]) -> float:
    """Multiplications and additions of the decoder, as diffusers does them."""
    frames, height, width = size
    mult = config.dim_mult[::-1]
    dims = [config.decoder_dim * m for m in (mult[0], *mult)]
    steps = (*config.temperal_downsample[::-1], None)
    pixels, wide = frames * height * width, dims[0]
    macs = 27 * pixels * wide * (config.z_dim + 4 * wide)
    macs += pixels * wide * (4 * wide + 2 * height * width)
    for i, temporal in enumerate(steps):
        out = dims[i + 1]
        given = dims[i] // 2 if i > 0 and not config.is_residual else dims[i]
        blocks = given + (2 * config.num_res_blocks + 1) * out
        macs += pixels * out * (27 * blocks + (given if given != out else 0))
        if temporal is None:
            continue
        if temporal:
            macs += 6 * (frames - 1) * height * width * out * out
            frames = 2 * frames - 1
        height, width = 2 * height, 2 * width
        pixels = frames * height * width
        macs += 9 * pixels * out * (out if config.is_residual else out // 2)
    return 2.0 * (macs + 27 * pixels * dims[-1] * config.out_channels)


def run_job(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Records of one job, in this process."""
    size = (args.frames, args.height, args.width)
    if args.job == PARTS:
        from benchmarks.vae_wan_parts import time_parts

        yield from time_parts(network_config(args), args.height, args.width)
    elif args.job == TORCH:
        from benchmarks.vae_wan_torch import time_peers

        yield from time_peers(network_config(args), size, args.repeats)
    elif args.job == ENCODE:
        yield from time_encoder(args)
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
    command = [sys.executable, "-m", "benchmarks.vae_wan", *_words(args), "--out", "-"]
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
    size = {"model": args.model if args.config is None else args.config.stem}
    size |= {name: getattr(args, name) for name in ("frames", "height", "width")}
    only = [word for name in args.only for word in ("--only", name)]
    command = ["python", "-m", "benchmarks.vae_wan", *_words(args), *only]
    for job in [job for job in JOBS if not args.only or job in args.only]:
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
