"""Checks and times attention kernels on one GPU, at the token counts of real models.

    python -m benchmarks.kernels.attention --out FILE [--only NAME,...]

Errors are relative L2 distances to float32 attention, on random normal inputs and on
inputs whose keys have a bias and a few strong channels.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import cudnn, mosaic_gpu, quantize_qkv, reference
from pallas_kernels.attention.shapes import SHAPES
from pallas_kernels.attention.tiles import Tile

# Rows whose error is measured: the first and last of the sequence, tail included.
_CHECKED_ROWS = 192


def candidates(head_dim: int) -> dict[str, tuple[str, Tile | None]]:
    """Name to precision and tile."""
    named: dict[str, tuple[str, Tile | None]] = {"cudnn": ("bf16", None)}
    for precision in ("bf16", "int8"):
        named[f"{precision}-best"] = precision, None
        for (block_kv, stages), warpgroups, turns, online in itertools.product(
            ((64, 4), (128, 2), (192, 2)), (2, 3, 4), (True, False), (False, True)
        ):
            if warpgroups * block_kv * head_dim > 32_768 or (
                online and (block_kv != 128 or not turns)
            ):
                continue  # more registers than there are, or of no interest
            if warpgroups == 4 and (block_kv, head_dim) != (64, 64):
                continue  # likewise
            if precision == "int8" and block_kv == 192:
                continue  # the keys that share a scale do not divide it
            name = f"{precision}-w{warpgroups}-kv{block_kv}"
            name += "-turns" if turns else "-free"
            tile = Tile(block_kv, stages, warpgroups, turns, online)
            named[name + "-online" * online] = precision, tile
    named["int8-with-quantization"] = "bf16", None
    return named


def inputs(shape, seed: int, realistic: bool) -> tuple[jax.Array, ...]:
    """Random q, k and v in bfloat16."""
    batch, q_tokens, kv_tokens, heads, head_dim = shape
    keys = jax.random.split(jax.random.key(seed), 5)
    tokens = (q_tokens, kv_tokens, kv_tokens)
    q, k, v = (
        jax.random.normal(key, (batch, n, heads, head_dim), jnp.float32)
        for key, n in zip(keys[:3], tokens, strict=True)
    )
    if realistic:
        # Keys with a bias, and channels that are strong in q and k.
        strong = jnp.where(jnp.arange(head_dim) % 16 == 3, 4.0, 1.0)
        k = k * strong + 3.0 * jax.random.normal(keys[3], (heads, head_dim))
        q = q * jnp.sqrt(strong) + jax.random.normal(keys[4], (heads, head_dim))
        v = v + 0.5
    return tuple(x.astype(jnp.bfloat16) for x in (q, k, v))


def operation(name: str, precision: str, tile: Tile | None, scale: float):
    """q, k, v (or what `quantize_qkv` made of them) to the output."""
    if name == "cudnn":
        return functools.partial(cudnn.attention, scale=scale)
    if name == "int8-with-quantization":
        return functools.partial(mosaic_gpu.attention, scale=scale, precision="int8")
    if precision == "int8":
        return functools.partial(mosaic_gpu.quantized_attention, tile=tile)
    return functools.partial(
        mosaic_gpu.attention, scale=scale, precision="bf16", tile=tile
    )


def relative_error(found: jax.Array, expected: jax.Array) -> float:
    """Relative L2 distance."""
    found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def median_ms(compiled, operands, calls: int) -> float:
    """Milliseconds per call, the median of five rounds of back-to-back calls."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready([compiled(*operands) for _ in range(calls)])
        times.append((time.perf_counter() - start) / calls * 1e3)
    return statistics.median(times)


def checked_rows(x: jax.Array) -> jax.Array:
    """First and last rows, over all heads."""
    return jnp.concatenate([x[:, :_CHECKED_ROWS], x[:, -_CHECKED_ROWS:]], axis=1)


def bench(shape_name: str, only: list[str], seconds: float) -> list[dict]:
    """Compiles all candidates, checks them on both kinds of data, times them."""
    shape = SHAPES[shape_name]
    batch, q_tokens, kv_tokens, heads, head_dim = shape
    scale = head_dim**-0.5
    start = time.time()
    quantize = jax.jit(functools.partial(quantize_qkv, scale=scale))
    problems: dict[str, dict[str, Any]] = {}
    for kind in ("normal", "realistic"):
        q, k, v = inputs(shape, 7, kind == "realistic")
        expected = jax.jit(
            functools.partial(reference.attention, scale=scale, precision="bf16")
        )(checked_rows(q).astype(jnp.float32), k, v)
        problems[kind] = {"bf16": (q, k, v), "int8": (quantize(q, k, v),)}
        problems[kind]["expected"] = expected
    jobs = []
    for name, (precision, tile) in candidates(head_dim).items():
        if only and not any(part in name for part in only):
            continue
        jobs.append((name, precision, tile))

    def build(job):
        name, precision, tile = job
        specs = jax.eval_shape(lambda *a: a, *problems["normal"][precision])
        try:
            run = operation(name, precision, tile, scale)
            return jax.jit(run).lower(*specs).compile()
        except (ValueError, RuntimeError, NotImplementedError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(14) as pool:
        built = list(pool.map(build, jobs))
    print(
        f"{shape_name}: compiled {len(jobs)} in {time.time() - start:.1f} s", flush=True
    )
    records = []
    flops = 4 * batch * q_tokens * kv_tokens * heads * head_dim
    for (name, precision, tile), compiled in zip(jobs, built, strict=True):
        record: dict[str, Any] = {
            "op": "attention",
            "model": shape_name,
            "shape": shape,
            "implementation": name,
            "precision": precision,
            "tile": tile and dataclasses.asdict(tile),
        }
        records.append(record)
        if isinstance(compiled, Exception):
            record["error"] = str(compiled)[:300]
            print(f"{name:28} failed: {record['error'][:150]}", flush=True)
            continue
        if time.time() - start > seconds:
            record["error"] = "out of time"
            continue
        for kind, problem in problems.items():
            out = compiled(*problem[precision])
            record[f"relative_l2_{kind}"] = relative_error(
                checked_rows(out), problem["expected"]
            )
        operands = problems["normal"][precision]
        record["median_ms"] = median_ms(
            compiled, operands, 3 if q_tokens * kv_tokens > 1e8 else 20
        )
        record["tflops"] = flops / record["median_ms"] / 1e9
        print(
            f"{name:28} {record['median_ms']:8.3f} ms {record['tflops']:7.1f} TFLOP/s"
            f"  l2 {record['relative_l2_normal']:.4f}"
            f" {record['relative_l2_realistic']:.4f}",
            flush=True,
        )
    return records


def check() -> list[dict]:
    """Odd token counts, several batch entries, and rows that overflow the fast path."""
    records = []
    for shape, rise in (
        ((2, 300, 300, 2, 64), 1.0),
        ((1, 200, 41, 3, 128), 1.0),
        ((1, 1_001, 1_283, 2, 128), 1.0),
        ((1, 300, 700, 2, 64), 150.0),
        # Four warpgroups: so many heads that 256 rows waste less than 192.
        ((1, 250, 301, 132, 64), 1.0),
        ((1, 250, 701, 132, 64), 150.0),
    ):
        q, k, v = inputs(shape, 3, realistic=False)
        # The first 300 keys stay as they are: none of the later scores is near theirs.
        factors = jnp.where(jnp.arange(shape[2]) < 300, 1.0, rise)
        k = (k * factors[:, None, None]).astype(k.dtype)
        scale = shape[-1] ** -0.5
        for precision in ("bf16", "int8"):
            # Quantized operands are compared with the same quantized operands: with
            # such keys the softmax picks one, and which one depends on the rounding.
            expected, found = (
                jax.jit(
                    functools.partial(
                        operation.attention, scale=scale, precision=precision
                    )
                )(q, k, v)
                for operation in (reference, mosaic_gpu)
            )
            error = relative_error(found, expected)
            name = f"check {precision} {shape} rise {rise}"
            records.append({"name": name, "relative_l2": error})
            print(f"{name}: l2 {error:.4f}", flush=True)
    return records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    records = check()
    for shape in args.shape or list(SHAPES):
        only = [part for part in args.only.split(",") if part]
        records += bench(shape, only, args.seconds)
        args.out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
