"""Benchmark entries of a whole site with and without Q-VDiT's rank-one update.

    python -m benchmarks.kernels.suite --out FILE --only corrected_site

Both run the INT8 route on 4-bit uniform weights: expansion, quantization of the
activation, product, gated residual. `note` says which has the update; the difference
of the two medians is its cost.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pallas_kernels import shapes
from sixbit_jax.benchmark.harness import Case
from sixbit_jax.formats import StoredWeight, UniformArray
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.formats.uniform_grid import UniformGrid
from sixbit_jax.nn.arithmetic import Work
from sixbit_jax.nn.fusion import Front, GatedResidual, Gelu, Modulate
from sixbit_jax.nn.linear import Affine
from sixbit_jax.routes import Route

FRAMES = 13
TEXT_ROWS = shapes.TEXT_TOKENS["cogvideox-5b"]
BITS = 4


def site(
    layer: str,
    implementation: str | None,
    route: Route,
    x: jax.Array,
    weight: StoredWeight,
    vectors: dict[str, jax.Array],
) -> jax.Array:
    """One linear on its route, with what the model has before and after it."""
    front: Front
    if layer == "ff_up":
        row = vectors["row"]
        front = Modulate(None, None, 1e-5, row, row, row, row, TEXT_ROWS)
    else:
        front = Gelu()
    residual = None
    if layer != "ff_up":
        gate = vectors["gate"]
        residual = GatedResidual(vectors["residual"], gate, gate, TEXT_ROWS)
    own = [Affine(weight, vectors["bias"])]
    work = Work(own, front, residual, implementation)
    return work.route(route)(x)[0]


def inputs(m: int, k: int, n: int, corrected: bool, seed) -> tuple:
    """Activation, weight, and the vectors around them."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    codes = jax.random.randint(next(keys), (n, k), 0, 2**BITS).astype(jnp.uint8)
    grid = UniformGrid(jnp.full((n,), 1e-3), jnp.full((n,), 2.0 ** (BITS - 1)))
    weight: StoredWeight = UniformArray.from_codes(codes, grid, BITS)
    if corrected:
        weight = CorrectedArray(
            weight,
            jax.random.normal(next(keys), (1, k)) / k**0.5,
            jax.random.normal(next(keys), (n, 1)),
            1.0 + 0.1 * jax.random.normal(next(keys), (1 + FRAMES,)),
            text_rows=TEXT_ROWS,
        )
    vectors = {
        "bias": jax.random.normal(next(keys), (n,), jnp.bfloat16),
        "row": jnp.zeros((1, k), jnp.float32),
        "gate": jnp.ones((1, n), jnp.float32),
        "residual": jax.random.normal(next(keys), (1, m, n), jnp.bfloat16),
    }
    return jax.random.normal(next(keys), (1, m, k), jnp.bfloat16), weight, vectors


def _error(layer: str, result: jax.Array, one: tuple) -> jax.Array:
    """Relative L2 distance from the plain definitions."""
    run = jax.jit(functools.partial(site, layer, "reference", Route.INT8))
    truth = run(*one).astype(jnp.float32)
    difference = jnp.linalg.norm(result.astype(jnp.float32) - truth)
    return difference / jnp.linalg.norm(truth)


def cases() -> Iterator[Case]:
    """Three linears of a CogVideoX-5b block, with and without the update."""
    for linear in shapes.block_linears("cogvideox-5b"):
        if linear.layer == "qkv":
            continue
        for corrected in (False, True):
            yield Case(
                op="corrected_site",
                implementation="mosaic_gpu",
                m=linear.m,
                k=linear.k,
                n=linear.n,
                function=functools.partial(site, linear.layer, None, Route.INT8),
                make_inputs=functools.partial(
                    inputs, linear.m, linear.k, linear.n, corrected
                ),
                flops=2.0 * linear.m * linear.k * linear.n,
                error=functools.partial(_error, linear.layer),
                note="rank-one" if corrected else "plain",
            )
