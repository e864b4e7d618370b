"""Checks of the Triton kernels on a GPU: odd shapes, every front and epilogue, NaN.

Each check compares with the definition and yields a flat record with the largest
difference in a unit that is named, and whether it is allowed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.elementwise import site_fields
from pallas_kernels.attention import reference as attention_reference
from pallas_kernels.attention import triton as attention_triton
from pallas_kernels.block_stats import cache
from pallas_kernels.block_stats import reference as stats_reference
from pallas_kernels.block_stats import triton as stats_triton
from pallas_kernels.int8_matmul import int8_matmul
from pallas_kernels.norm_rope import Heads, Rotary, norm_rope, norm_rope_qkv
from pallas_kernels.numerics import int8, nvfp4
from pallas_kernels.nvfp4_expand import nvfp4_expand
from pallas_kernels.quantize_int8 import reference as int8_reference
from pallas_kernels.quantize_int8 import triton as int8_triton
from pallas_kernels.quantize_nvfp4 import reference as nvfp4_reference
from pallas_kernels.quantize_nvfp4 import triton as nvfp4_triton
from pallas_kernels.row_tiles.site import SiteInput

_NAN_ROW = 5

type Check = tuple[str, Callable[[], tuple[float, float, bool]]]
"""Name, and what returns the error, its limit, and whether NaN are in their places."""


def _relative(found, expected) -> float:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    both = np.isfinite(expected) & np.isfinite(found)
    distance = np.where(both, found - expected, 0)
    return float(np.linalg.norm(distance) / np.linalg.norm(np.where(both, expected, 0)))


def _same_nan(found, expected) -> bool:
    return bool((np.isnan(found) == np.isnan(expected)).all())


def _products() -> Iterator[Check]:
    from benchmarks.kernels.gemm import TEXT_ROWS

    def check(lead, m, k, n, kind):
        keys = iter(jax.random.split(jax.random.key(m), 9))
        x = jax.random.randint(next(keys), (*lead, m, k), -127, 128, jnp.int8)
        w = jax.random.randint(next(keys), (n, k), -127, 128, jnp.int8)
        x_scales = jax.random.uniform(next(keys), (*lead, m)) * 1e-3
        if m > 1:  # A single row stays finite, or nothing would be compared.
            x_scales = x_scales.at[..., _NAN_ROW].set(jnp.nan)
        w_scales = jax.random.uniform(next(keys), (n,)) * 1e-3
        extra: dict[str, Any] = {"bias": jax.random.normal(next(keys), (n,))}
        if kind == "gelu":
            extra["activation"] = "gelu_tanh"
        if kind == "gated":
            extra["residual"] = jax.random.normal(next(keys), (*lead, m, n))
            extra["gate"] = jax.random.normal(next(keys), (*lead, n), jnp.bfloat16)
            extra["text_gate"] = -extra["gate"]
            extra["text_rows"] = min(TEXT_ROWS, m // 2)

        options = {n: v for n, v in extra.items() if not isinstance(v, jax.Array)}
        arrays = {n: v for n, v in extra.items() if isinstance(v, jax.Array)}

        def run(implementation):
            return jax.jit(
                lambda a, arrays: int8_matmul(
                    *a,
                    **arrays,
                    **options,
                    out_dtype=jnp.float32,
                    implementation=implementation,
                )
            )((x, x_scales, w, w_scales), arrays)

        found, expected = run("triton"), run("reference")
        return _relative(found, expected), 1e-6, _same_nan(found, expected)

    for case in (
        ((), 139, 384, 96, "gated"),
        ((), 1001, 1920, 5760, "bias"),
        ((2,), 777, 3072, 1008, "gated"),
        ((), 1, 272, 40, "gelu"),
    ):
        yield f"int8_matmul {case}", functools.partial(check, *case)


def _quantizations() -> Iterator[Check]:
    def site(k, kind):
        fields = site_fields(1, (1, 1003, k), kind)
        fields["x"] = fields["x"].at[0, _NAN_ROW, k - 3].set(jnp.nan)
        arrays = {n: v for n, v in fields.items() if isinstance(v, jax.Array)}
        return arrays, {n: v for n, v in fields.items() if n not in arrays}

    def check_int8(k, kind, rotation):
        arrays, options = site(k, kind)

        # Arrays are arguments: XLA would compute with constants while it compiles.
        def run(module):
            return jax.jit(
                lambda arrays: module.quantize_int8(
                    SiteInput(**arrays, **options, rotation=rotation), with_stats=False
                )
            )(arrays)

        found, expected = run(int8_triton), run(int8_reference)
        error = _relative(int8.dequantize(*found[:2]), int8.dequantize(*expected[:2]))
        return error, 1e-2, _same_nan(found[1], expected[1])

    def check_nvfp4(k, kind, rotation, scale):
        arrays, options = site(k, kind)
        given = None if scale is None else jnp.float32(scale)

        def run(module):
            return jax.jit(
                lambda arrays, given: module.quantize_nvfp4(
                    SiteInput(**arrays, **options, rotation=rotation),
                    given,
                    with_stats=True,
                )
            )(arrays, given)

        decoded = []
        found, expected = run(nvfp4_triton), run(nvfp4_reference)
        for codes, scales, tensor, _ in (found, expected):
            decoded.append(nvfp4.dequantize(codes[0], scales[0], tensor))
        return _relative(*decoded), 3e-2, _same_nan(*decoded)

    for k, kind, rotation in (
        (1920, "norm", 128),
        (3072, "plain", 128),
        (13824, "gelu", 128),
        (5120, "norm", 0),
    ):
        case = (k, kind, rotation)
        yield f"quantize_int8 {case}", functools.partial(check_int8, *case)
        scale = None if k == 1920 else 2e-3
        yield f"quantize_nvfp4 {case}", functools.partial(check_nvfp4, *case, scale)


def _expand(n, k, to):
    """Results of two implementations of the expansion: the share that differs."""
    w = jax.random.normal(jax.random.key(k), (n, k)) * 0.02
    arrays = jax.jit(nvfp4.quantize)(w)
    found, expected = (
        jax.tree.leaves(
            jax.jit(lambda *a, i=i: nvfp4_expand(*a, to=to, implementation=i))(*arrays)
        )
        for i in ("triton", "reference")
    )
    same = [
        float(np.mean(np.asarray(a) != np.asarray(b)))
        for a, b in zip(found, expected, strict=True)
    ]
    return max(same), 0.0, True


def _stats(cache_format):
    """Statistics of blocks, and the delta that is stored."""
    keys = jax.random.split(jax.random.key(2), 3)
    x, noise, old = (
        jax.random.normal(key, (2, 503, 3072), jnp.bfloat16) for key in keys
    )
    y = x + 0.1 * noise
    before = cache.encode(0.1 * old, cache_format)
    found, expected = (
        jax.jit(lambda *a, m=m: m.block_stats(*a, cache_format=cache_format))(
            x, y, before
        )
        for m in (stats_triton, stats_reference)
    )
    errors = [_relative(found.gamma, expected.gamma)]
    errors.append(_relative(found.delta_change, expected.delta_change))
    errors.append(_relative(cache.decode(found.delta), cache.decode(expected.delta)))
    return max(errors), 1e-5, True


def _rope(tokens, text, heads, head_dim, kind):
    """Norm and rotary embedding, in 16 bits and with INT8 queries and keys."""
    angles = np.random.default_rng(0).uniform(-9, 9, (tokens - text, head_dim // 2))
    rotary = Rotary(
        np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), text
    )
    keys = jax.random.split(jax.random.key(3), 4)
    shape = (2, tokens, heads, head_dim)
    affine = (head_dim,) if kind == "layer" else (heads, head_dim)
    arrays = (
        jax.random.normal(keys[0], shape, jnp.bfloat16),
        jax.random.normal(keys[1], shape, jnp.bfloat16),
        jax.random.normal(keys[2], affine) + 2,
        jax.random.uniform(keys[3], (2, tokens)) + 0.5,
    )

    def heads_of(x, weight, factor):
        if kind == "layer":
            return Heads(x, norm="layer", weight=weight, bias=weight, rotary=rotary)
        return Heads(x, row_factor=factor, weight=weight, rotary=rotary)

    def plain(implementation, q, k, weight, factor):
        del k
        part = heads_of(q, weight, factor)
        return norm_rope(part, implementation=implementation)

    def quantized(implementation, q, k, weight, factor):
        queries, keys = (heads_of(x, weight, factor) for x in (q, k))
        made = norm_rope_qkv(queries, keys, q, implementation=implementation)
        return made.dequantize()

    errors = []
    for call in (plain, quantized):
        found, expected = (
            jax.tree.leaves(jax.jit(functools.partial(call, i))(*arrays))
            for i in ("triton", "reference")
        )
        errors += [_relative(a, b) for a, b in zip(found, expected, strict=True)]
    return max(errors), 5e-3, True


def _others() -> Iterator[Check]:
    for case in ((1003, 3072, "int8"), (777, 8960, "int8"), (1003, 1920, "bfloat16")):
        yield f"nvfp4_expand {case}", functools.partial(_expand, *case)
    for cache_format in cache.CACHE_FORMATS:
        yield f"block_stats {cache_format}", functools.partial(_stats, cache_format)
    for case in ((1003, 26, 6, 64, "layer"), (501, 0, 5, 128, "rms")):
        yield f"norm_rope {case}", functools.partial(_rope, *case)


def _attention() -> Iterator[Check]:
    from benchmarks.kernels.attention import inputs

    def check(shape, rise, precision, lengths, dtype):
        q, k, v = (x.astype(dtype) for x in inputs(shape, 3, realistic=False))
        factors = jnp.where(jnp.arange(shape[2]) < 130, 1.0, rise)
        k = (k * factors[:, None, None]).astype(k.dtype)
        options: dict[str, Any] = {"scale": shape[-1] ** -0.5, "precision": precision}
        if lengths is not None:
            options["key_lengths"] = jnp.array(lengths)
            v = v.at[:, max(lengths) :].set(jnp.nan)
        found, expected = (
            jax.jit(functools.partial(module.attention, **options))(q, k, v)
            for module in (attention_triton, attention_reference)
        )
        error = _relative(found, expected)
        return error, 6e-3, bool(np.isfinite(np.asarray(found, np.float32)).all())

    for precision in ("bf16", "int8"):
        for shape, rise, lengths, dtype in (
            ((2, 300, 300, 2, 64), 1.0, None, jnp.bfloat16),
            ((1, 200, 41, 3, 128), 1.0, None, jnp.bfloat16),
            ((1, 1_001, 1_283, 2, 128), 1.0, None, jnp.bfloat16),
            ((1, 300, 700, 2, 64), 150.0, None, jnp.bfloat16),
            ((2, 300, 700, 2, 128), 1.0, (333, 256), jnp.bfloat16),
            ((1, 300, 700, 2, 64), 1.0, None, jnp.float16),
        ):
            case = (shape, rise, precision, lengths, dtype)
            name = f"attention {precision} {shape} rise {rise} lengths {lengths} "
            yield name + jnp.dtype(dtype).name, functools.partial(check, *case)


GROUPS = {
    "products": _products,
    "quantizations": _quantizations,
    "others": _others,
    "attention": _attention,
}


def run_checks(group: str) -> Iterator[dict[str, Any]]:
    """A record per check: its error, the limit, and whether NaN are where they belong.

    One that cannot run names its `failure`.
    """
    for name, check in GROUPS[group]():
        record: dict[str, Any] = {"check": name}
        began = time.perf_counter()
        try:
            error, limit, places = check()
            record |= {"relative_error": error, "limit": limit, "places": places}
            record["ok"] = error <= limit and places
        except (ValueError, RuntimeError, NotImplementedError) as failure:
            shown = f"{type(failure).__name__}: {str(failure)[:300]}"
            record |= {"ok": False, "failure": shown}
        record["seconds"] = round(time.perf_counter() - began, 1)
        yield record
