"""Benchmark entries of int8_matmul, nvfp4_expand and nvfp4_matmul."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import shapes
from pallas_kernels.int8_matmul import int8_matmul
from pallas_kernels.numerics import nvfp4
from pallas_kernels.nvfp4_expand import nvfp4_expand
from pallas_kernels.nvfp4_matmul import nvfp4_matmul
from sixbit_jax.benchmark.harness import Case

TEXT_ROWS = shapes.TEXT_TOKENS["cogvideox-5b"]
# The epilogue that each layer of a block has in the models.
LAYER_EPILOGUE = {
    "qkv": "bias",
    "attn_out": "gated",
    "ff_up": "gelu",
    "ff_down": "gated",
}


def _integers(m: int, k: int, n: int, kind: str, seed) -> tuple:
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    extra = {}
    if kind != "scales":
        extra["bias"] = jax.random.normal(next(keys), (n,), jnp.bfloat16)
    if kind == "gated":
        extra["residual"] = jax.random.normal(next(keys), (m, n), jnp.bfloat16)
        extra["gate"] = jax.random.normal(next(keys), (n,), jnp.bfloat16)
        extra["text_gate"] = jax.random.normal(next(keys), (n,), jnp.bfloat16)
    return (
        jax.random.randint(next(keys), (m, k), -127, 128, jnp.int8),
        jax.random.uniform(next(keys), (m,)) * 1e-3,
        jax.random.randint(next(keys), (n, k), -127, 128, jnp.int8),
        jax.random.uniform(next(keys), (n,)) * 1e-3,
        extra,
    )


def _int8(kind: str, implementation: str, x, x_scales, w, w_scales, extra):
    return int8_matmul(
        x,
        x_scales,
        w,
        w_scales,
        **extra,
        activation="gelu_tanh" if kind == "gelu" else None,
        text_rows=TEXT_ROWS if kind == "gated" else 0,
        implementation=implementation,
    )


def _relative(found: jax.Array, expected: jax.Array) -> jax.Array:
    found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
    return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)


def _int8_error(kind: str, found, inputs):
    return _relative(
        found, jax.jit(functools.partial(_int8, kind, "reference"))(*inputs)
    )


def _floats(dtype, m: int, k: int, n: int, seed) -> tuple:
    keys = jax.random.split(jax.random.key(seed))
    return (
        jax.random.normal(keys[0], (m, k), jnp.bfloat16).astype(dtype),
        jax.random.normal(keys[1], (n, k), jnp.bfloat16).astype(dtype),
    )


def _xla_dot(x, w):
    dot = lax.dot_general(
        x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return dot.astype(jnp.bfloat16)


def int8_cases(linears) -> Iterator[Case]:
    """Our product against XLA's int8 (same epilogue), bf16 and fp8."""
    for linear in linears:
        m, k, n = linear.m, linear.k, linear.n
        for kind in dict.fromkeys(("scales", LAYER_EPILOGUE[linear.layer])):
            for name, implementation in (
                ("mosaic_gpu", "mosaic_gpu"),
                ("xla int8", "reference"),
            ):
                yield Case(
                    op="int8_matmul",
                    implementation=name,
                    m=m,
                    k=k,
                    n=n,
                    function=functools.partial(_int8, kind, implementation),
                    make_inputs=functools.partial(_integers, m, k, n, kind),
                    flops=2.0 * m * k * n,
                    # XLA's own product is the definition.
                    error=(
                        functools.partial(_int8_error, kind)
                        if name == "mosaic_gpu"
                        else None
                    ),
                    note=kind,
                )
        for name, dtype in (("xla bf16", jnp.bfloat16), ("xla fp8", jnp.float8_e4m3fn)):
            yield Case(
                op="int8_matmul",
                implementation=name,
                m=m,
                k=k,
                n=n,
                function=_xla_dot,
                make_inputs=functools.partial(_floats, dtype, m, k, n),
                flops=2.0 * m * k * n,
                note="product",
            )


def _stored(n: int, k: int, seed) -> tuple:
    w = jax.random.normal(jax.random.key(seed), (n, k)) * 0.02
    return jax.jit(nvfp4.quantize)(w)


def _mismatches(to: Literal["int8", "bfloat16"], found, inputs):
    """Share of elements that differ from the definition at all."""
    expected = jax.jit(
        functools.partial(nvfp4_expand, to=to, implementation="reference")
    )(*inputs)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.mean(a != b)) for a, b in pairs)


def expand_cases(linears) -> Iterator[Case]:
    """Expansion of stored weights; the error is the share of differing elements."""
    for n, k in dict.fromkeys((linear.n, linear.k) for linear in linears):
        for to, out_bytes in (("int8", 1), ("bfloat16", 2)):
            for name, implementation in (
                ("mosaic_gpu", "mosaic_gpu"),
                ("xla", "reference"),
            ):
                yield Case(
                    op="nvfp4_expand",
                    implementation=name,
                    m=0,
                    k=k,
                    n=n,
                    function=functools.partial(
                        nvfp4_expand, to=to, implementation=implementation
                    ),
                    make_inputs=functools.partial(_stored, n, k),
                    bytes=n * k * (0.5 + 1 / 16 + out_bytes),
                    error=functools.partial(_mismatches, to),
                    note=to,
                )


def _both_stored(m: int, k: int, n: int, seed) -> tuple:
    return (*_stored(m, k, 2 * seed), *_stored(n, k, 2 * seed + 1))


def _nvfp4_error(found, inputs):
    rows = 256
    some = (inputs[0][:rows], inputs[1][:rows], *inputs[2:])
    expected = jax.jit(functools.partial(nvfp4_matmul, implementation="reference"))
    return _relative(found[:rows], expected(*some))


def nvfp4_cases(linears) -> Iterator[Case]:
    """The exact emulation, expansion included."""
    for linear in linears:
        m, k, n = linear.m, linear.k, linear.n
        yield Case(
            op="nvfp4_matmul",
            implementation="mosaic_gpu",
            m=m,
            k=k,
            n=n,
            function=functools.partial(nvfp4_matmul, implementation="mosaic_gpu"),
            make_inputs=functools.partial(_both_stored, m, k, n),
            flops=2.0 * m * k * n,
            error=_nvfp4_error,
        )


def cases() -> Iterator[Case]:
    """All entries of this file, for the headline shapes."""
    yield from int8_cases(shapes.HEADLINE)
    yield from expand_cases(shapes.HEADLINE)
    yield from nvfp4_cases(shapes.HEADLINE)
