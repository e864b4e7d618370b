"""Checks and times the Triton kernels beside Mosaic GPU, XLA and cuDNN on one GPU.

    python -m benchmarks.kernels.triton_kernels --out FILE [--only PART,...]

Parts run in processes of their own, that compile side by side and use the device in
turn. `check-...` are correctness; `tune-...` time candidates of tiles, the best of
which belong into the tables of the ops' `triton.py`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kernels import elementwise, gemm, norm_rope
from benchmarks.kernels.attention import inputs
from benchmarks.kernels.triton_checks import run_checks
from pallas_kernels import shapes
from pallas_kernels.attention import cudnn, quantize_qkv
from pallas_kernels.attention import mosaic_gpu as attention_mosaic
from pallas_kernels.attention import triton as attention_triton
from pallas_kernels.attention.shapes import SHAPES
from pallas_kernels.block_stats import triton as stats_triton
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.int8_matmul import triton as matmul_triton
from pallas_kernels.numerics import nvfp4
from pallas_kernels.nvfp4_expand import nvfp4_expand
from pallas_kernels.nvfp4_expand import triton as expand_triton
from pallas_kernels.quantize_int8 import triton as int8_triton
from pallas_kernels.quantize_nvfp4 import triton as nvfp4_triton
from pallas_kernels.triton_backend.rows import RowShape
from sixbit_jax.benchmark import harness, records
from sixbit_jax.benchmark.harness import Case
from sixbit_jax.benchmark.workers import Worker, wait_for_turn

# In the order of their turns.
PARTS = (
    "attention-64",
    "gemm",
    "attention-128",
    "rows",
    "check-products",
    "check-attention",
    "check-quantizations",
    "check-others",
)
TUNING = ("tune-attention-64", "tune-attention-128", "tune-gemm", "tune-rows")
_PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "jax-triton", "triton")

_GEMM_TILES = (
    matmul_triton.Tile(128, 256, 128, 8, 3),
    matmul_triton.Tile(128, 256, 128, 8, 4),
    matmul_triton.Tile(128, 256, 64, 8, 4),
    matmul_triton.Tile(256, 128, 128, 8, 3),
    matmul_triton.Tile(256, 128, 128, 8, 4),
    matmul_triton.Tile(128, 128, 128, 4, 3),
    matmul_triton.Tile(128, 128, 256, 8, 3),
    matmul_triton.Tile(128, 256, 128, 8, 3, 16),
)
_ROW_SHAPES = tuple(
    RowShape(*shape) for shape in itertools.product((4096, 8192), (16, 32), (4, 8, 16))
)
# For the quantizations: none of Triton's pipelining, which see `front.load_rows`.
_ROTATING_SHAPES = tuple(
    RowShape(*shape, stages=1)
    for shape in (
        (8192, 32, 4),
        (8192, 32, 8),
        (8192, 16, 4),
        (4096, 32, 8),
        (4096, 16, 8),
        (16384, 32, 4),
        (16384, 64, 4),
    )
)
_ATTENTION_TILES = {
    64: ((128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2),
         (128, 128, 8, 2), (128, 32, 8, 4), (64, 128, 4, 2)),
    128: ((128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (128, 64, 4, 3),
          (64, 128, 4, 2), (128, 64, 8, 2), (256, 64, 16, 2)),
}  # fmt: skip


def _gemm(tune: bool) -> Iterator[Case]:
    linears = shapes.block_linears("cogvideox-5b")
    for case in () if tune else gemm.int8_cases(linears):
        kind = case.note
        # XLA tunes itself for long: at two shapes.
        if case.implementation == "mosaic_gpu" and kind != "scales":
            yield case
            function = functools.partial(gemm._int8, kind, "triton")
            yield _as_triton(case, function)
        elif case.implementation == "xla int8" and kind in ("bias", "gelu"):
            yield case
    for linear in linears[1:] if tune else ():
        kind = gemm.LAYER_EPILOGUE[linear.layer]
        for tile in _GEMM_TILES:
            m, k, n = linear.m, linear.k, linear.n
            yield Case(
                op="int8_matmul",
                implementation="triton",
                m=m,
                k=k,
                n=n,
                function=functools.partial(_tiled_int8, kind, tile),
                make_inputs=functools.partial(gemm._integers, m, k, n, kind),
                flops=2.0 * m * k * n,
                note=f"{kind} {tuple(tile)}",
            )


def _tiled_int8(kind, tile, x, x_scales, w, w_scales, extra):
    operands = EpilogueOperands(
        **extra,
        activation="gelu_tanh" if kind == "gelu" else None,
        text_rows=gemm.TEXT_ROWS if kind == "gated" else 0,
    )
    return matmul_triton.int8_matmul(
        x, x_scales, w, w_scales, operands, jnp.bfloat16, tile=tile
    )


def _as_triton(case: Case, function, note: str = "") -> Case:
    import dataclasses

    return dataclasses.replace(
        case, implementation="triton", function=function, note=f"{case.note}{note}"
    )


def _bound(module: ModuleType, name: str, **options: Any) -> Any:
    """Something with `module`'s function, options bound, as the entries call it."""
    holder = ModuleType(name)
    setattr(holder, name, functools.partial(getattr(module, name), **options))
    return holder


def _rows(tune: bool) -> Iterator[Case]:
    for case in elementwise.cases():
        if case.k not in (3072, 12288):
            continue
        if case.op == "copy" and not tune:
            yield case
        if case.implementation != "mosaic_gpu":
            continue
        if not tune:
            yield case
            yield _as_triton(case, _row_function(case, None))
        elif (case.op, case.k, case.note) in _TUNED:
            quantizes = case.op.startswith("quantize")
            for shape in _ROTATING_SHAPES if quantizes else _ROW_SHAPES:
                function = _row_function(case, shape)
                yield _as_triton(case, function, f" {tuple(shape)}")
    for case in () if tune else norm_rope.cases():
        if case.note not in ("cogvideox-5b", "wan-1.3b"):
            continue
        if case.implementation == "mosaic_gpu":
            yield case
            given: Any = case.function
            run = functools.partial(given.func, *given.args[:2])
            yield _as_triton(case, functools.partial(run, "triton"))
    yield from _expansions(_ROW_SHAPES[:6] if tune else (None,))


_TUNED = {
    ("quantize_int8", 3072, "norm"),
    ("quantize_int8", 3072, "plain"),
    ("quantize_int8", 12288, "gelu"),
    ("quantize_nvfp4", 3072, "plain"),
    ("block_stats", 3072, "bf16"),
}


def _row_function(case: Case, shape: RowShape | None):
    if case.op == "quantize_int8":
        module = _bound(int8_triton, "quantize_int8", shape=shape)
        return functools.partial(elementwise.run_int8, module, case.note)
    if case.op == "quantize_nvfp4":
        module = _bound(nvfp4_triton, "quantize_nvfp4", shape=shape)
        given: Any = case.function
        scale = given.args[2]
        return functools.partial(elementwise.run_nvfp4, module, case.note, scale)
    module = _bound(stats_triton, "block_stats", shape=shape)
    cache_format: Any = case.note
    return functools.partial(elementwise.run_stats, module, cache_format)


def _stored(n: int, k: int, seed) -> tuple:
    w = jax.random.normal(jax.random.key(seed), (n, k)) * 0.02
    return nvfp4.quantize(w)


def _expansions(choices: tuple) -> Iterator[Case]:
    for n, k in ((12288, 3072), (3072, 12288)):
        case = functools.partial(
            Case,
            op="nvfp4_expand",
            m=n,
            k=k,
            n=0,
            make_inputs=functools.partial(_stored, n, k),
            bytes=n * k * (0.5 + 1 / 16 + 1.0),
        )
        mosaic = functools.partial(nvfp4_expand, implementation="mosaic_gpu")
        if None in choices:
            yield case(implementation="mosaic_gpu", function=mosaic)
        for shape in choices:
            triton = functools.partial(
                expand_triton.nvfp4_expand, to="int8", shape=shape
            )
            note = f"{tuple(shape)}" if shape else ""
            yield case(implementation="triton", function=triton, note=note)


def _attention(head_dim: int, tune: bool) -> Iterator[Case]:
    name = {64: "cogvideox-5b", 128: "wan-1.3b"}[head_dim]
    batch, q_tokens, kv_tokens, heads, _ = SHAPES[name]
    scale = head_dim**-0.5

    def make(seed):
        return inputs(SHAPES[name], seed, realistic=False)

    def make_quantized(seed):
        return (quantize_qkv(*make(seed), scale=scale),)

    case = functools.partial(
        Case,
        op="attention",
        m=q_tokens,
        k=head_dim,
        n=heads,
        flops=4.0 * batch * q_tokens * kv_tokens * heads * head_dim,
    )
    bf16 = functools.partial(case, make_inputs=make)
    eight = functools.partial(case, make_inputs=make_quantized)
    for sizes in _ATTENTION_TILES[head_dim] if tune else ():
        tile = attention_triton.Tile(*sizes)
        run = functools.partial(
            attention_triton.attention, scale=scale, precision="bf16", tile=tile
        )
        yield bf16(implementation="triton", function=run, note=f"bf16 {sizes}")
        run = functools.partial(attention_triton.quantized_attention, tile=tile)
        yield eight(implementation="triton", function=run, note=f"int8 {sizes}")
    if tune:
        return
    library = functools.partial(cudnn.attention, scale=scale)
    yield bf16(implementation="cudnn", function=library)
    for module, implementation in (
        (attention_mosaic, "mosaic_gpu"),
        (attention_triton, "triton"),
    ):
        run = functools.partial(module.attention, scale=scale, precision="bf16")
        yield bf16(implementation=implementation, function=run, note="bf16")
        run = module.quantized_attention
        yield eight(implementation=implementation, function=run, note="int8")
        run = functools.partial(module.attention, scale=scale, precision="int8")
        note = "int8, quantization included"
        yield bf16(implementation=implementation, function=run, note=note)


def cases(part: str) -> list[Case]:
    """What a part times: its defaults and peers, or its candidates of tiles."""
    tune = part.startswith("tune-")
    part = part.removeprefix("tune-")
    if part == "gemm":
        found = _gemm(tune)
    elif part == "rows":
        found = _rows(tune)
    else:
        found = _attention(int(part.split("-")[1]), tune)
    return list(found)


def _work(part: str) -> Iterator[dict]:
    """The records of one part; the device is its own after `wait_for_turn`."""
    if part.startswith("check-"):
        wait_for_turn(part)
        yield from run_checks(part.removeprefix("check-"))
        return
    yield from harness.run_all(cases(part), lambda: wait_for_turn(part))


def _run_parts(
    parts: Sequence[str], patience: float, seconds: float
) -> Iterator[tuple[str, dict]]:
    """The records of all parts: the first that has compiled uses the device.

    One that says nothing for `patience` seconds of its turn is stopped, and all are
    after `seconds`.
    """
    end = time.monotonic() + seconds
    lines: queue.Queue = queue.Queue()
    base = ["-m", "benchmarks.kernels.triton_kernels", "--out", "-", "--part"]
    workers = {
        part: Worker(part, [*base, part], lines, keeps_memory=False) for part in parts
    }
    ready: list[str] = []
    left, running, since = list(parts), "", time.monotonic()
    try:
        while left:
            if time.monotonic() > end:
                for part in left:
                    yield part, {"failure": "no time left"}
                return
            if not running and ready:
                running = min(ready, key=parts.index)
                ready.remove(running)
                workers[running].go()
                since = time.monotonic()
            try:
                name, line = lines.get(timeout=2.0)
            except queue.Empty:
                if running and time.monotonic() - since > patience:
                    workers[running].stop()
                    since = time.monotonic() + 60
                    yield running, {"failure": f"silent for {patience:.0f} s"}
                continue
            if line is None:
                left.remove(name)
                ready = [other for other in ready if other != name]
                if workers[name].process.wait():
                    yield name, {"failure": workers[name].failure()}
                running = "" if name == running else running
            elif set(line) == {"ready"}:
                ready.append(name)
            else:
                since = time.monotonic()
                yield name, line
    finally:
        for worker in workers.values():
            worker.stop()


def main() -> int:
    """The command line; fails if a check does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--only", help="parts, separated by commas (all without tune)")
    parser.add_argument("--patience", type=float, default=40.0, help="seconds (40)")
    parser.add_argument("--seconds", type=float, default=170.0, help="in all (170)")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        for record in _work(args.part):
            print(json.dumps(record), flush=True)
        return 0
    wanted = args.only.split(",") if args.only else PARTS
    if unknown := set(wanted) - {*PARTS, *TUNING}:
        parser.error(f"--only: expected some of {(*PARTS, *TUNING)}, found {unknown}")
    given = [
        Path(word).name if word == str(args.out) else word for word in sys.argv[1:]
    ]
    head = records.header(
        ["python", "-m", "benchmarks.kernels.triton_kernels", *given],
        packages=_PACKAGES,
        commit_id=args.commit,
        machine_name="",
    )
    found: list[dict[str, Any]] = []
    began = time.monotonic()
    for part, record in _run_parts(wanted, args.patience, args.seconds):
        found.append({"part": part, **record})
        shown = harness.show(record) if "m" in record else record
        print(f"{time.monotonic() - began:5.0f} s", part, shown, flush=True)
        records.write(args.out, head, found)
    head["machine"] = records.machine()
    records.write(args.out, head, found)
    return int(any(not record.get("ok", True) for record in found))


if __name__ == "__main__":
    sys.exit(main())
