"""Benchmark entries of norm_rope: what stands between projections and attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.norm_rope import Heads, Rotary, norm_rope, norm_rope_qkv
from pallas_kernels.norm_rope.shapes import SHAPES
from sixbit_jax.benchmark.harness import Case


def _rotary(tokens: int, text: int, head_dim: int) -> Rotary:
    angles = np.random.default_rng(0).uniform(-9, 9, (tokens - text, head_dim // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    return Rotary(cos.astype(np.float32), sin.astype(np.float32), text)


def _inputs(tokens: int, heads: int, head_dim: int, kind: str, seed) -> tuple:
    keys = jax.random.split(jax.random.key(seed), 5)
    shape = (1, tokens, heads, head_dim)
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:3])
    affine = (head_dim,) if kind == "layer" else (heads, head_dim)
    weight = 1 + 0.1 * jax.random.normal(keys[3], affine, jnp.bfloat16)
    factor = jax.random.uniform(keys[4], (1, tokens)) + 0.5
    return q, k, v, weight, factor


def _heads(kind: str, rotary: Rotary | None, x, weight, factor) -> Heads:
    if kind == "layer":
        bias = jnp.zeros_like(weight)
        return Heads(x, norm="layer", weight=weight, bias=bias, rotary=rotary)
    return Heads(x, row_factor=factor, weight=weight, rotary=rotary)


def _both(kind, rotary, implementation, q, k, v, weight, factor):
    del v
    return [
        norm_rope(
            _heads(kind, rotary, x, weight, factor), implementation=implementation
        )
        for x in (q, k)
    ]


def _quantized(kind, rotary, implementation, q, k, v, weight, factor):
    queries, keys = (_heads(kind, rotary, x, weight, factor) for x in (q, k))
    found = norm_rope_qkv(queries, keys, v, implementation=implementation)
    return found.q_values, found.q_scales, found.k_values, found.k_scales


def _error(run, found, inputs):
    """Largest difference of the values, over the largest value."""
    expected = jax.jit(functools.partial(run, "reference"))(*inputs)
    differences = [
        jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))
        / jnp.max(jnp.abs(b.astype(jnp.float32)))
        for a, b in zip(found, expected, strict=True)
    ]
    return jnp.max(jnp.stack(differences))


def cases() -> Iterator[Case]:
    """Our kernels and XLA's fusions of the definition."""
    for model, (tokens, text, heads, head_dim, kind, turned) in SHAPES.items():
        rotary = _rotary(tokens, text, head_dim) if turned else None
        values = tokens * heads * head_dim
        for op, function, written in (
            ("norm_rope", _both, 2),
            ("norm_rope_qkv", _quantized, 1),
        ):
            run = functools.partial(function, kind, rotary)
            for name, chosen in (("mosaic_gpu", "mosaic_gpu"), ("xla", "reference")):
                yield Case(
                    op=op,
                    implementation=name,
                    m=tokens,
                    k=head_dim,
                    n=heads,
                    function=functools.partial(run, chosen),
                    make_inputs=functools.partial(
                        _inputs, tokens, heads, head_dim, kind
                    ),
                    bytes=math.fsum([2 * values * (2 + written)]),
                    error=(
                        functools.partial(_error, run) if name == "mosaic_gpu" else None
                    ),
                    note=model,
                )
