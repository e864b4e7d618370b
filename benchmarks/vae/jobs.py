"""One job of the benchmark, in this process: whole decoders and encoders."""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.vae.subjects import ENCODE, PARTS, SUBJECTS, TORCH, Subject, shape_of

# A small video whose float32 frames say how far the bf16 ones are.
CHECKED = (3, 16, 24)


def run_job(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Records of one job."""
    subject = SUBJECTS[args.model]
    values = None if args.config is None else json.loads(args.config.read_text())
    config = subject.config(values)
    size = (args.frames, args.height, args.width)
    if args.job == PARTS:
        from benchmarks.vae.parts import time_parts

        module = importlib.import_module(subject.parts or "")
        yield from time_parts(module.all_parts(config, args.height, args.width))
    elif args.job == TORCH:
        from benchmarks.vae.torch_peers import time_peers

        yield from time_peers(subject, config, size, args.repeats)
    elif args.job == ENCODE:
        yield from time_encoder(subject, config, size, args.repeats)
    else:
        yield time_decoder(subject, config, size, args.repeats, args.job)


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


def time_decoder(
    subject: Subject, config: Any, size: tuple[int, int, int], repeats: int, name: str
) -> dict[str, Any]:
    """One record of the whole decoder in bf16, computed in one way."""
    import jax
    import jax.numpy as jnp

    decode, _ = subject.functions()
    options = subject.decoders[name]
    vae = random_vae(subject.network(), config, jnp.bfloat16)
    latents = _latents(config, size, jnp.bfloat16)
    timed = _timed(lambda: decode(vae, latents, output="uint8", **options), repeats)
    timed["first_frames_s"] = timed.pop("first_s")
    timed["decode_s"] = timed.pop("seconds")
    if subject.flops is not None:
        timed["tflops"] = subject.flops(config, size) / timed["decode_s"] / 1e12
    # After the peak was read.
    small = _latents(config, CHECKED, jnp.float32)
    with jax.default_matmul_precision("highest"):
        exact = _joined(decode(vae, small, dtype=jnp.float32))
    found = _joined(decode(vae, small, **options))
    error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    return {"program": name, **options, **timed, "relative_error": float(error)}


def time_encoder(
    subject: Subject, config: Any, size: tuple[int, int, int], repeats: int
) -> Iterator[dict[str, Any]]:
    """One record of the whole encoder for each precision."""
    import jax
    import jax.numpy as jnp

    _, encode = subject.functions()
    vae = random_vae(subject.network(), config, jnp.float32)
    _, temporal, spatial = shape_of(config)
    frames, height, width = size
    shape = (1, temporal * (frames - 1) + 1, 3, spatial * height, spatial * width)
    video = jax.random.uniform(jax.random.key(2), shape, jnp.bfloat16, -1.0, 1.0)
    # bf16 first: the peak only rises.
    for dtype in (jnp.bfloat16, jnp.float32):
        timed = _timed(
            lambda dtype=dtype: iter([encode(vae, video, dtype=dtype)]), repeats
        )
        timed["encode_s"] = timed.pop("seconds")
        del timed["first_s"]
        yield {"program": f"encode, {jnp.dtype(dtype).name}", **timed}


def _latents(config: Any, size: tuple[int, int, int], dtype: Any) -> Any:
    import jax

    frames, height, width = size
    shape = (1, frames, shape_of(config)[0], height, width)
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
