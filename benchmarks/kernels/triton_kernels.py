"""Checks and times the Triton kernels beside Mosaic GPU, XLA and cuDNN on one GPU.

    python -m benchmarks.kernels.triton_kernels --out FILE [--only PART,...] [--tune]

Parts run in processes of their own, that compile side by side and use the device in
turn: `check` (correctness), `gemm`, `rows`, `attention-64`, `attention-128`. With
`--tune` every part times its candidates of tiles too; the best belong into the tables
of the ops' `triton.py`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kernels import elementwise, gemm, norm_rope
from benchmarks.kernels.attention import SHAPES, inputs
from pallas_kernels import shapes
from pallas_kernels.attention import cudnn, quantize_qkv
from pallas_kernels.attention import mosaic_gpu as attention_mosaic
from pallas_kernels.attention import triton as attention_triton
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
from sixbit_jax.benchmark.workers import in_turn, wait_for_turn

PARTS = ("check", "attention-64", "attention-128", "gemm", "rows")
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
_ATTENTION_TILES = {
    64: ((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3),
         (64, 128, 4, 2), (128, 128, 4, 2), (256, 64, 8, 3)),
    128: ((128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (128, 64, 4, 3),
          (64, 128, 4, 2), (128, 64, 8, 2), (256, 64, 16, 2)),
}  # fmt: skip


def _gemm(tune: bool) -> Iterator[Case]:
    linears = shapes.block_linears("cogvideox-5b")
    for case in gemm.int8_cases(linears):
        kind = case.note
        # XLA tunes itself for long: at two shapes.
        if case.implementation == "mosaic_gpu" and kind != "scales":
            yield case
            function = functools.partial(gemm._int8, kind, "triton")
            yield _as_triton(case, function)
        elif case.implementation == "xla int8" and kind in ("bias", "gelu"):
            yield case
    if not tune:
        return
    for linear in linears[1:]:
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
    choices: tuple = (None, *_ROW_SHAPES) if tune else (None,)
    copies = [c for c in elementwise.cases() if c.op == "copy" and c.k in (3072, 12288)]
    yield from copies
    for case in elementwise.cases():
        if case.implementation != "mosaic_gpu" or case.k not in (3072, 12288):
            continue
        yield case
        for shape in choices:
            if shape and (case.op, case.k, case.note) not in _TUNED:
                continue
            note = f" {tuple(shape)}" if shape else ""
            yield _as_triton(case, _row_function(case, shape), note)
    for case in norm_rope.cases():
        if case.note not in ("cogvideox-5b", "wan-1.3b"):
            continue
        if case.implementation == "mosaic_gpu":
            yield case
            run = case.function.func
            yield _as_triton(
                case, functools.partial(run, *case.function.args[:2], "triton")
            )
    yield from _expansions(choices[:6])


_TUNED = {
    ("quantize_int8", 3072, "norm"),
    ("quantize_int8", 12288, "plain"),
    ("quantize_nvfp4", 3072, "plain"),
    ("block_stats", 3072, "bf16"),
}


def _row_function(case: Case, shape: RowShape | None):
    if case.op == "quantize_int8":
        module = _bound(int8_triton, "quantize_int8", shape=shape)
        return functools.partial(elementwise.run_int8, module, case.note)
    if case.op == "quantize_nvfp4":
        module = _bound(nvfp4_triton, "quantize_nvfp4", shape=shape)
        scale = case.function.args[2]
        return functools.partial(elementwise.run_nvfp4, module, case.note, scale)
    module = _bound(stats_triton, "block_stats", shape=shape)
    return functools.partial(elementwise.run_stats, module, case.note)


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
    yield bf16(
        implementation="cudnn", function=functools.partial(cudnn.attention, scale=scale)
    )
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
    if not tune:
        return
    for sizes in _ATTENTION_TILES[head_dim]:
        tile = attention_triton.Tile(*sizes)
        run = functools.partial(
            attention_triton.attention, scale=scale, precision="bf16", tile=tile
        )
        yield bf16(implementation="triton", function=run, note=f"bf16 {sizes}")
        run = functools.partial(attention_triton.quantized_attention, tile=tile)
        yield eight(implementation="triton", function=run, note=f"int8 {sizes}")


def cases(part: str, tune: bool) -> list[Case]:
    """What a part times."""
    if part == "gemm":
        return list(_gemm(tune))
    if part == "rows":
        return list(_rows(tune))
    return list(_attention(int(part.split("-")[1]), tune))


def _work(part: str, tune: bool) -> Iterator[dict]:
    """The records of one part; the device is its own after `wait_for_turn`."""
    if part == "check":
        from benchmarks.kernels.triton_checks import all_checks

        wait_for_turn(part)
        yield from all_checks()
        return
    harness.REPEATS = 5 if part.startswith("attention") else harness.REPEATS
    yield from harness.run_all(cases(part, tune), lambda: wait_for_turn(part))


def main() -> int:
    """The command line; fails if a check does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--tune", action="store_true", help="time tile candidates too")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        for record in _work(args.part, args.tune):
            print(json.dumps(record), flush=True)
        return 0
    wanted = [part for part in PARTS if part in (args.only or ",".join(PARTS))]
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
    command = ["-m", "benchmarks.kernels.triton_kernels", "--out", str(args.out)]
    command += ["--tune"] if args.tune else []
    for part, record in in_turn([*command, "--part"], wanted):
        found.append({"part": part, **record})
        print(harness.show(record) if "m" in record else record, flush=True)
        records.write(args.out, head, found)
    head["machine"] = records.machine()
    records.write(args.out, head, found)
    return int(any(not record.get("ok", True) for record in found))


if __name__ == "__main__":
    sys.exit(main())
