"""block_stats: the definition, the formats, the kernel's threads in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.block_stats import (
    CachedDelta,
    apply_delta,
    block_stats,
    cache,
    mosaic_gpu,
    reference,
    shapes,
)
from tests.pallas_kernels.lane_emulator import emulated

# Largest relative error of a stored delta, in units of its largest value.
PRECISION = {"bf16": 2.0**-8, "int8": 0.5 / 127, "nvfp4": 1.0 / 6}


ENCODE = jax.jit(cache.encode, static_argnums=1)
REFERENCE = jax.jit(reference.block_stats, static_argnames="cache_format")


def streams(*shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    x, noise, old = (jax.random.normal(k, shape, jnp.bfloat16) for k in keys)
    return x, x + 0.1 * noise, 0.1 * old.astype(jnp.float32)


def bytes_of(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("cache_format", cache.CACHE_FORMATS)
def test_format_keeps_a_delta_within_its_precision(cache_format):
    delta = streams(2, 5, 128)[2]
    stored = ENCODE(delta, cache_format)
    assert stored.format == cache_format
    largest = jnp.max(jnp.abs(delta), axis=-1, keepdims=True)
    error = jnp.abs(cache.decode(stored) - delta) / largest
    assert float(error.max()) <= PRECISION[cache_format]


def test_stored_formats_are_as_small_as_promised():
    delta = jnp.ones((17, 256))
    sizes = {
        f: sum(a.nbytes for a in jax.tree.leaves(ENCODE(delta, f)))
        for f in cache.CACHE_FORMATS
    }
    elements = delta.size
    assert sizes == {
        "bf16": 2 * elements,
        "int8": elements + 4 * 17,
        "nvfp4": elements // 2 + elements // 16 + 4 * 17,
    }


def test_reference_sums_per_batch_element():
    x, y, old = streams(2, 7, 128)
    found = block_stats(x, y, CachedDelta(old.astype(jnp.bfloat16)))
    x, y, old = (np.asarray(z, np.float64) for z in (x, y, old.astype(jnp.bfloat16)))
    gamma = np.abs(y - x).sum((1, 2)) / np.abs(x).sum((1, 2))
    change = np.abs(y - x - old).sum((1, 2)) / np.abs(old).sum((1, 2))
    np.testing.assert_allclose(found.gamma, gamma, rtol=1e-5)
    np.testing.assert_allclose(found.delta_change, change, rtol=1e-5)


def test_without_an_old_delta_the_change_is_infinite():
    x, y, _ = streams(3, 128)
    assert float(block_stats(x, y).delta_change) == np.inf


@pytest.mark.parametrize("cache_format", cache.CACHE_FORMATS)
def test_applying_a_delta_gives_the_output_back(cache_format):
    x, y, _ = streams(2, 9, 256)
    found = apply_delta(x, REFERENCE(x, y, None, cache_format=cache_format).delta)
    assert found.dtype == x.dtype
    delta = y.astype(jnp.float32) - x.astype(jnp.float32)
    limit = PRECISION[cache_format] * float(jnp.abs(delta).max()) + 2.0**-6
    assert float(jnp.abs(found - y).max()) <= limit


@pytest.mark.parametrize("old_format", [None, *cache.CACHE_FORMATS])
@pytest.mark.parametrize("cache_format", cache.CACHE_FORMATS)
def test_kernel_threads_agree_with_the_reference(monkeypatch, cache_format, old_format):
    x, y, old = streams(2, 13, 384)
    stored = None if old_format is None else ENCODE(old, old_format)
    with emulated(monkeypatch, mosaic_gpu):
        found = mosaic_gpu.block_stats(x, y, stored, cache_format=cache_format)
    expected = REFERENCE(x, y, stored, cache_format=cache_format)
    np.testing.assert_allclose(found.gamma, expected.gamma, rtol=1e-5)
    np.testing.assert_allclose(found.delta_change, expected.delta_change, rtol=1e-5)
    same = jax.tree.map(
        lambda a, b: float((bytes_of(a) == bytes_of(b)).mean()),
        found.delta,
        expected.delta,
    )
    assert min(jax.tree.leaves(same)) >= 0.99


@pytest.mark.parametrize("cache_format", ["int8", "nvfp4"])
@pytest.mark.parametrize("implementation", ["reference", "mosaic_gpu"])
def test_nan_stays_in_its_row(monkeypatch, cache_format, implementation):
    x, y, _ = streams(9, 128)
    y = y.at[4, 100].set(jnp.nan)
    with emulated(monkeypatch, mosaic_gpu):
        run = functools.partial(
            block_stats, cache_format=cache_format, implementation=implementation
        )
        found = (jax.jit(run) if implementation == "reference" else run)(x, y)
    finite = np.isfinite(np.asarray(cache.decode(found.delta)))
    np.testing.assert_array_equal(np.flatnonzero(~finite.all(-1)), [4])
    assert not finite[4].any()


@pytest.mark.parametrize("cache_format", cache.CACHE_FORMATS)
def test_kernel_lowers_for_cuda(cache_format):
    x = jax.ShapeDtypeStruct((2, shapes.ROWS, shapes.CHANNELS[0]), jnp.bfloat16)
    old = jax.eval_shape(lambda x: cache.encode(x, cache_format), x)

    def run(x, y, old):
        return block_stats(
            x, y, old, cache_format=cache_format, implementation="mosaic_gpu"
        )

    text = jax.jit(run).trace(x, x, old).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


def test_bad_input_is_named():
    x = jnp.ones((4, 128), jnp.bfloat16)
    with pytest.raises(ValueError, match="one shape"):
        block_stats(x, x[:3])
    with pytest.raises(ValueError, match="cache_format must be one of"):
        block_stats(x, x, cache_format="fp8")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="bfloat16"):
        block_stats(x, x.astype(jnp.float32), implementation="mosaic_gpu")
