"""Times tile candidates of the GEMM skeleton on real shapes and checks each result.

Run through `python -m benchmarks.kernels.suite --tune`.
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

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import profiler

from pallas_kernels.gemm.config import Epilogue, Tile
from pallas_kernels.gemm.epilogue import gelu_tanh
from pallas_kernels.gemm.mosaic_gpu import matmul

_COLUMNS = Tile(store=32)
_ROWS = Tile(store=32, split="rows")
_WIDE = Tile(store=32, split="rows", rows=64, columns=256)
_TURNS = Tile(store=32, split="alternate", stages=6)
_replace = dataclasses.replace
CANDIDATES = {
    "columns": _COLUMNS,
    "columns-store64": _replace(_COLUMNS, store=64),
    "columns-wait": _replace(_COLUMNS, in_flight=0),
    "columns-cr": _replace(_COLUMNS, cluster="rows"),
    "columns-cc": _replace(_COLUMNS, cluster="columns"),
    "probe": _replace(_COLUMNS, depth=256, stages=2, in_flight=0),
    "rows": _ROWS,
    "rows-cr": _replace(_ROWS, cluster="rows"),
    "rows-cc": _replace(_ROWS, cluster="columns"),
    "wide": _WIDE,
    "wide-cr": _replace(_WIDE, cluster="rows"),
    "turns": _TURNS,
    "turns-cr": _replace(_TURNS, cluster="rows"),
    "turns-cc": _replace(_TURNS, cluster="columns"),
    "turns192": _replace(_TURNS, columns=192),
    "turns192-store64": _replace(_TURNS, columns=192, store=64),
    "turns192-wait": _replace(_TURNS, columns=192, in_flight=0),
    "turns-store64": _replace(_TURNS, store=64),
    "turns192-cr": _replace(_TURNS, columns=192, cluster="rows"),
    "rows192": _replace(_ROWS, columns=192),
    "rows192-cr": _replace(_ROWS, columns=192, cluster="rows"),
}
for _name in tuple(CANDIDATES):
    for _band in (4, 8, 12, 16, 32):
        CANDIDATES[f"{_name}:rows{_band}"] = _replace(
            CANDIDATES[_name], band=_band, minor="rows"
        )
        CANDIDATES[f"{_name}:columns{_band}"] = _replace(
            CANDIDATES[_name], band=_band, minor="columns"
        )

EPILOGUES = {
    "scale": Epilogue(),
    "bias": Epilogue(bias=True),
    "gelu": Epilogue(bias=True, activation="gelu_tanh"),
    "gated": Epilogue(bias=True, residual=True, gate=True, text_rows=226),
}


def operands(m: int, k: int, n: int, epilogue: Epilogue, seed: int | jax.Array) -> dict:
    """Random operands of one problem, on the default device."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    made = {
        "a": jax.random.randint(next(keys), (1, m, k), -127, 128, jnp.int8),
        "w": jax.random.randint(next(keys), (n, k), -127, 128, jnp.int8),
        "row_scale": jax.random.uniform(next(keys), (m,)) * 1e-3,
        "column_scale": jax.random.uniform(next(keys), (n,)) * 1e-3,
    }
    if epilogue.bias:
        made["bias"] = jax.random.normal(next(keys), (n,), jnp.bfloat16)
    if epilogue.residual:
        made["residual"] = jax.random.normal(next(keys), (1, m, n), jnp.bfloat16)
    if epilogue.gate:
        made["gate"] = jax.random.normal(next(keys), (1, n), jnp.bfloat16)
        made["text_gate"] = jax.random.normal(next(keys), (1, n), jnp.bfloat16)
    return made


def reference(epilogue: Epilogue, made: dict) -> jax.Array:
    """The same function in XLA, rounded to bfloat16 at the end."""
    acc = jax.lax.dot_general(
        made["a"][0],
        made["w"],
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    y = acc.astype(jnp.float32) * made["row_scale"][:, None] * made["column_scale"]
    if epilogue.bias:
        y = y + made["bias"].astype(jnp.float32)
    if epilogue.activation:
        y = gelu_tanh(y)
    if epilogue.gate:
        text = jnp.arange(y.shape[0])[:, None] < epilogue.text_rows
        y = y * jnp.where(text, made["text_gate"], made["gate"]).astype(jnp.float32)
    if epilogue.residual:
        y = y + made["residual"][0].astype(jnp.float32)
    return y.astype(jnp.bfloat16)


def ulps(x: jax.Array, y: jax.Array) -> jax.Array:
    """Largest distance in bfloat16 steps, counted through the ordered bit pattern."""

    def ordered(value):
        value = jnp.where(jnp.abs(value) < 1e-30, 0, value)
        bits = jax.lax.bitcast_convert_type(value, jnp.int16).astype(jnp.int32)
        return jnp.where(bits < 0, -32768 - bits, bits)

    return jnp.max(jnp.abs(ordered(x) - ordered(y)))


def relative(found: jax.Array, expected: jax.Array) -> jax.Array:
    """Distance in the Euclidean norm, relative to the expected array."""
    difference = found.astype(jnp.float32) - expected.astype(jnp.float32)
    return jnp.linalg.norm(difference) / jnp.linalg.norm(expected.astype(jnp.float32))


def tune(shapes, epilogue_names, names, seconds: float, out: Path) -> list[dict]:
    """Compiles, checks and times; writes a record after every shape."""
    records = []
    start = time.time()
    jobs = []
    for (m, k, n), epilogue_name in itertools.product(shapes, epilogue_names):
        epilogue = EPILOGUES[epilogue_name]
        spec = jax.eval_shape(
            functools.partial(operands, m, k, n, epilogue),
            jax.ShapeDtypeStruct((), "int32"),
        )
        for name in names:
            tile = CANDIDATES[name]
            tile = tile.fitted(epilogue, n, 1, 2)

            def run(made, tile=tile, epilogue=epilogue):
                return matmul(tile=tile, epilogue=epilogue, **made)[0]

            jobs.append(((m, k, n), epilogue_name, name, tile, jax.jit(run), spec))

    def build(job):
        try:
            return job[4].lower(job[5]).compile()
        except (ValueError, RuntimeError, NotImplementedError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        built = list(pool.map(build, jobs))
    print(f"compiled {len(jobs)} in {time.time() - start:.1f} s", flush=True)
    # Bring the chip to the clock and temperature of steady work.
    big = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    multiply = jax.jit(lambda x: x @ x.T)
    for _ in range(300):
        warm = multiply(big)
    warm.block_until_ready()
    problem, made, expected = None, {}, jnp.zeros(())
    for job, compiled in zip(jobs, built, strict=True):
        (m, k, n), epilogue_name, name, tile, _, _ = job
        record = {
            "op": "int8_matmul",
            "m": m,
            "k": k,
            "n": n,
            "epilogue": epilogue_name,
            "implementation": f"mosaic_gpu:{name}",
            "tile": dataclasses.asdict(tile),
        }
        records.append(record)
        if isinstance(compiled, Exception):
            record["error"] = str(compiled)[:300]
            print(f"{name:16} failed: {record['error'][:150]}", flush=True)
            continue
        if time.time() - start > seconds:
            record["error"] = "out of time"
            continue
        if problem != (m, k, n, epilogue_name):
            problem = (m, k, n, epilogue_name)
            made = operands(m, k, n, EPILOGUES[epilogue_name], 1)
            expected = jax.jit(reference, static_argnums=0)(
                EPILOGUES[epilogue_name], made
            )
        result, times = profiler.measure(compiled, iterations=20)(made)
        if not isinstance(times, list):
            raise RuntimeError("the profiler saw no kernel")
        record["max_ulps"] = int(ulps(result, expected))
        record["relative_error"] = float(relative(result, expected))
        record["median_us"] = statistics.median(times) * 1e3
        record["tops"] = 2 * m * k * n / record["median_us"] / 1e6
        print(
            f"{m}x{k}x{n} {epilogue_name:6} {name:18} {record['median_us']:8.1f} us"
            f" {record['tops']:7.1f} TOPS, {record['max_ulps']} ulp,"
            f" {record['relative_error']:.1e}",
            flush=True,
        )
        out.write_text(json.dumps(records, indent=1))
    return records


def main(arguments: list[str] | None = None) -> None:
    """Command line: shapes, epilogues and candidates to try."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--epilogue", action="append", default=[])
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    shapes = [tuple(map(int, s.split("x"))) for s in args.shape] or [
        (17776, 3072, 12288)
    ]
    names = [n for n in args.only.split(",") if n] or list(CANDIDATES)
    np.random.seed(0)
    tune(shapes, args.epilogue or ["scale"], names, args.seconds, args.out)


if __name__ == "__main__":
    main()
