"""Benchmark entries of quantize_int8, quantize_nvfp4 and block_stats.

Bytes are those that one pass must move: inputs read once, outputs written once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp

from pallas_kernels.block_stats import cache
from pallas_kernels.block_stats import mosaic_gpu as stats_kernel
from pallas_kernels.block_stats import reference as stats_reference
from pallas_kernels.block_stats import shapes as stats_shapes
from pallas_kernels.numerics import int8, nvfp4
from pallas_kernels.quantize_int8 import mosaic_gpu as int8_kernel
from pallas_kernels.quantize_int8 import reference as int8_reference
from pallas_kernels.quantize_nvfp4 import mosaic_gpu as nvfp4_kernel
from pallas_kernels.quantize_nvfp4 import reference as nvfp4_reference
from pallas_kernels.row_tiles.shapes import ROWS as TOKENS
from pallas_kernels.row_tiles.shapes import SITES, TEXT_ROWS
from pallas_kernels.row_tiles.site import SiteInput
from sixbit_jax.benchmark.harness import Case

TENSOR_SCALE = 2e-3
INT8_BYTES = 2.0 + 1.0
NVFP4_BYTES = 2.0 + 0.5 + 1.0 / nvfp4.BLOCK
CACHE_BYTES: dict[cache.CacheFormat, float] = {
    "bf16": 2.0,
    "int8": 1.0,
    "nvfp4": 0.5 + 1.0 / nvfp4.BLOCK,
}


def site_fields(seed: int, shape: tuple[int, ...], kind: str) -> dict:
    """Fields of a `SiteInput`: kind is "plain", "gelu" or "norm" (and modulation)."""
    keys = jax.random.split(jax.random.key(seed), 7)
    fields: dict = {"x": jax.random.normal(keys[0], shape, jnp.bfloat16)}
    if kind == "gelu":
        fields["activation"] = "gelu_tanh"
    if kind == "norm":
        k, batch = shape[-1:], shape[:-2]
        modulation = ("shift", "scale", "text_shift", "text_scale")
        for key, name in zip(keys[1:5], modulation, strict=True):
            fields[name] = jax.random.normal(key, batch + k, jnp.bfloat16) * 0.5
        fields["norm_weight"] = jax.random.normal(keys[5], k, jnp.bfloat16)
        fields["norm_bias"] = jax.random.normal(keys[6], k, jnp.bfloat16)
        fields["norm"] = "layer"
        fields["text_rows"] = min(TEXT_ROWS, shape[-2] // 2)
    return fields


def random_site(seed: int, shape: tuple[int, ...], kind: str) -> SiteInput:
    """A site with random operands, see `site_fields`."""
    return SiteInput(**site_fields(seed, shape, kind))


def site_inputs(k: int, kind: str, seed: int) -> tuple:
    """The arrays of a site; its options are static."""
    fields = site_fields(seed, (1, TOKENS, k), kind)
    return ({n: v for n, v in fields.items() if isinstance(v, jax.Array)},)


def _site(kind: str, arrays: dict, **changes) -> SiteInput:
    options: dict = {"gelu": {"activation": "gelu_tanh"}}.get(kind, {})
    if kind == "norm":
        options = {"norm": "layer", "text_rows": TEXT_ROWS}
    return SiteInput(**arrays, **options, **changes)


def run_int8(
    module: ModuleType, kind: str, arrays: dict, *, stats: bool = False, **site
):
    return module.quantize_int8(_site(kind, arrays, **site), with_stats=stats)


def run_nvfp4(module: ModuleType, kind: str, scale: float | None, arrays: dict, **site):
    tensor_scale = None if scale is None else jnp.float32(scale)
    return module.quantize_nvfp4(
        _site(kind, arrays, **site), tensor_scale, with_stats=False
    )


def _relative(found: jax.Array, expected: jax.Array) -> jax.Array:
    return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)


@functools.partial(jax.jit, static_argnums=0)
def _int8_error(kind: str, found, inputs) -> jax.Array:
    """Relative error of the dequantized values against the reference's."""
    expected = run_int8(int8_reference, kind, *inputs)
    return _relative(int8.dequantize(*found[:2]), int8.dequantize(*expected[:2]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nvfp4_error(kind: str, scale: float | None, found, inputs) -> jax.Array:
    expected = run_nvfp4(nvfp4_reference, kind, scale, *inputs)
    decoded = []
    for codes, scales, tensor_scale, _ in (found, expected):
        rows = codes.reshape(-1, codes.shape[-1]), scales.reshape(-1, scales.shape[-1])
        decoded.append(nvfp4.dequantize(*rows, tensor_scale))
    return _relative(*decoded)


def _quantizations() -> Iterator[Case]:
    for k, kind in SITES:
        make = functools.partial(site_inputs, k, kind)
        case = functools.partial(Case, m=TOKENS, k=k, n=0, make_inputs=make, note=kind)
        of_int8 = functools.partial(
            case,
            op="quantize_int8",
            bytes=INT8_BYTES * TOKENS * k,
            error=functools.partial(_int8_error, kind),
        )
        kernel = functools.partial(run_int8, int8_kernel, kind)
        yield of_int8(implementation="mosaic_gpu", function=kernel)
        yield of_int8(
            implementation="mosaic_gpu with_stats",
            function=functools.partial(kernel, stats=True),
        )
        xla = functools.partial(run_int8, int8_reference, kind)
        yield of_int8(implementation="xla", function=xla, error=None)
        yield of_int8(
            implementation="xla, no rotation",
            function=functools.partial(xla, rotation=0),
            error=None,
        )
        for name, scale in (("", TENSOR_SCALE), (" two passes", None)):
            of_nvfp4 = functools.partial(
                case, op="quantize_nvfp4", bytes=NVFP4_BYTES * TOKENS * k
            )
            yield of_nvfp4(
                implementation=f"mosaic_gpu{name}",
                function=functools.partial(run_nvfp4, nvfp4_kernel, kind, scale),
                error=functools.partial(_nvfp4_error, kind, scale),
            )
            xla = functools.partial(run_nvfp4, nvfp4_reference, kind, scale, rotation=0)
            yield of_nvfp4(implementation=f"xla, no rotation{name}", function=xla)


def stats_inputs(k: int, cache_format: cache.CacheFormat, seed: int) -> tuple:
    keys = jax.random.split(jax.random.key(seed), 3)
    x, noise, old = (jax.random.normal(z, (TOKENS, k), jnp.bfloat16) for z in keys)
    return x, x + 0.1 * noise, cache.encode(0.1 * old, cache_format)


def run_stats(module: ModuleType, cache_format: cache.CacheFormat, x, y, old):
    return module.block_stats(x, y, old, cache_format=cache_format)


@functools.partial(jax.jit, static_argnums=0)
def _stats_error(cache_format: cache.CacheFormat, found, inputs) -> jax.Array:
    """The largest relative error among gamma, the change and the stored delta."""
    expected = run_stats(stats_reference, cache_format, *inputs)
    scalars = [jnp.abs(a / b - 1) for a, b in zip(found[:2], expected[:2], strict=True)]
    delta = _relative(cache.decode(found[2]), cache.decode(expected[2]))
    return jnp.max(jnp.stack([*scalars, delta]))


def _apply(x, y, old):
    del y
    return stats_reference.apply_delta(x, old)


def _block_stats() -> Iterator[Case]:
    for k in stats_shapes.CHANNELS:
        for cache_format, size in CACHE_BYTES.items():
            case = functools.partial(
                Case,
                m=TOKENS,
                k=k,
                n=0,
                make_inputs=functools.partial(stats_inputs, k, cache_format),
                note=cache_format,
            )
            stats = functools.partial(
                case, op="block_stats", bytes=(4.0 + 2 * size) * TOKENS * k
            )
            yield stats(
                implementation="mosaic_gpu",
                function=functools.partial(run_stats, stats_kernel, cache_format),
                error=functools.partial(_stats_error, cache_format),
            )
            yield stats(
                implementation="xla",
                function=functools.partial(run_stats, stats_reference, cache_format),
            )
            yield case(
                op="apply_delta",
                bytes=(4.0 + size) * TOKENS * k,
                implementation="xla",
                function=_apply,
            )


def cases() -> Iterator[Case]:
    """All entries, a copy of each size first: the rate the chip can move bytes at."""
    for k in sorted({k for k, _ in SITES}):
        yield Case(
            op="copy",
            implementation="xla",
            m=TOKENS,
            k=k,
            n=0,
            function=lambda arrays: -arrays["x"],
            make_inputs=functools.partial(site_inputs, k, "plain"),
            bytes=4.0 * TOKENS * k,
        )
    yield from _quantizations()
    yield from _block_stats()
