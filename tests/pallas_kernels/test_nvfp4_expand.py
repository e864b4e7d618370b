"""Expansion of stored NVFP4: definition, the threads in NumPy, lowering."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.numerics import int8, nvfp4
from pallas_kernels.nvfp4_expand import mosaic_gpu, nvfp4_expand
from pallas_kernels.row_tiles import lanes
from tests.pallas_kernels import lane_emulator


def stored(n, k, *, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    values = jnp.asarray(rng.normal(size=(*lead, n, k)), jnp.float32)
    return nvfp4.quantize(values)


@pytest.fixture
def threads(monkeypatch):
    """Runs the kernel's per-thread code in NumPy, block by block."""
    for name, replacement in lane_emulator.REPLACED.items():
        for module in (lanes, mosaic_gpu):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, replacement)
    of = lane_emulator.Int
    monkeypatch.setattr(lanes, "thread_index", lambda: of(np.arange(128)))
    monkeypatch.setattr(
        mosaic_gpu, "_load_byte", lambda m, at: of(m.data[at.value.astype(np.int64)])
    )
    monkeypatch.setattr(
        mosaic_gpu, "_highest_bit", lambda w: of(np.log2(w.value).astype(np.uint32))
    )
    monkeypatch.setattr(mosaic_gpu, "_to_float", lambda w: lane_emulator.Float(w.value))

    def run(codes, block_scales, tensor_scale, to, scales=None):
        lead, (n, half) = codes.shape[:-2], codes.shape[-2:]
        rows, to_int8 = int(np.prod(lead, dtype=int)) * n, to == "int8"
        layout = mosaic_gpu._Rows(rows, n, 2 * half, 16 if to_int8 else 8)
        out = np.full((rows, 2 * half), 99, np.int8 if to_int8 else jnp.bfloat16)
        found = np.zeros(rows, np.float32)

        def memory(array):
            return lane_emulator.Bytes(np.array(array))

        operands = [memory(a) for a in (codes, block_scales, tensor_scale)]
        given = None if scales is None else memory(scales)
        written = lane_emulator.Bytes(out)
        measured = lane_emulator.Bytes(found) if to_int8 and scales is None else None
        for block in range(-(-rows // layout.per_block)):
            mosaic_gpu._work(
                of(block), *operands, given, written, measured,
                lane_emulator.Bytes(np.zeros(4, np.float32)), layout,
            )  # fmt: skip
        out = out.reshape(*lead, n, 2 * half)
        if not to_int8:
            return out
        return out, found.reshape(*lead, n) if scales is None else scales

    return run


# One warp per row, a partly filled last step, a whole block per row.
@pytest.mark.parametrize("k", [64, 1920, 4608])
@pytest.mark.parametrize("to", ["int8", "bfloat16"])
def test_threads_equal_the_definition(threads, k, to):
    array = stored(5, k)
    expected = nvfp4_expand(*array, to=to)
    found = threads(*array, to)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_threads_with_given_scales_saturate_like_the_definition(threads):
    array = stored(5, 256)
    scales = nvfp4_expand(*array)[1] * jnp.float32(0.3)
    expected, _ = nvfp4_expand(*array, scales=scales)
    found, _ = threads(*array, "int8", scales)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [256, 4608])
def test_threads_zero_a_row_with_a_nan_block(threads, k):
    codes, block_scales, tensor_scale = stored(4, k)
    block_scales = block_scales.at[2, -1].set(jnp.nan)
    expected = nvfp4_expand(codes, block_scales, tensor_scale)
    found = threads(codes, block_scales, tensor_scale, "int8")
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_threads_use_the_tensor_scale_of_their_layer(threads):
    codes, block_scales, _ = stored(3, 64, lead=(2,))
    tensor_scale = jnp.asarray([0.5, 3.0])
    for to in ("int8", "bfloat16"):
        expected = nvfp4_expand(codes, block_scales, tensor_scale, to=to)
        found = threads(codes, block_scales, tensor_scale, to)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_threads_round_every_block_scale(threads):
    """All E4M3 scales, subnormals included, with all codes."""
    codes = jnp.tile(jnp.arange(0, 256, 17, dtype=jnp.uint8), (127, 4))
    bits = jnp.broadcast_to(jnp.arange(127, dtype=jnp.uint8)[:, None], (127, 8))
    block_scales = jax.lax.bitcast_convert_type(bits, jnp.float8_e4m3fn)
    array = (codes, block_scales, jnp.float32(0.75))
    found = threads(*array, "bfloat16")
    np.testing.assert_array_equal(found, nvfp4_expand(*array, to="bfloat16"))


def test_bfloat16_is_the_dequantized_value_rounded_once():
    array = stored(8, 64)
    exact = np.asarray(nvfp4.dequantize(*array, jnp.float32))
    found = nvfp4_expand(*array, to="bfloat16")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_int8_uses_the_whole_range_of_every_row():
    values, scales = nvfp4_expand(*stored(8, 64))
    assert values.dtype == jnp.int8
    np.testing.assert_array_equal(np.abs(np.asarray(values, np.int32)).max(1), 127)
    exact = np.asarray(nvfp4.dequantize(*stored(8, 64), jnp.float32))
    error = np.abs(np.asarray(values) * np.asarray(scales)[:, None] - exact)
    assert (error <= 0.5001 * np.asarray(scales)[:, None]).all()


def test_given_scales_are_used_and_saturate():
    array = stored(4, 32)
    _, scales = nvfp4_expand(*array)
    values, kept = nvfp4_expand(*array, scales=scales * 0.5)
    np.testing.assert_array_equal(kept, scales * 0.5)
    exact = np.asarray(nvfp4.dequantize(*array, jnp.float32), np.float64)
    wanted = np.rint(exact / np.asarray(scales * 0.5, np.float64)[:, None])
    assert (np.abs(wanted) > 127).any()
    np.testing.assert_allclose(values, np.clip(wanted, -127, 127), atol=1)


def test_a_nan_block_stays_in_its_row():
    codes, block_scales, tensor_scale = stored(4, 32)
    block_scales = block_scales.at[1, 0].set(jnp.nan)
    values, scales = nvfp4_expand(codes, block_scales, tensor_scale)
    assert np.isnan(np.asarray(scales)).tolist() == [False, True, False, False]
    assert not np.asarray(values)[1].any()


def test_stacked_layers_keep_their_own_tensor_scales():
    codes, block_scales, tensor_scale = stored(4, 32, lead=(3,))
    values, scales = nvfp4_expand(codes, block_scales, tensor_scale * 2.0)
    exact = nvfp4.dequantize(codes, block_scales, tensor_scale * 2.0)
    expected = int8.quantize(exact)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(scales, expected[1])


@pytest.mark.parametrize("to", ["int8", "bfloat16"])
@pytest.mark.parametrize("k", [1920, 13824, 48])
def test_lowers_for_cuda(to, k, lower_for_cuda):
    array = stored(6, k)
    text = lower_for_cuda(
        lambda *a: nvfp4_expand(*a, to=to, implementation="mosaic_gpu"), *array
    )
    assert f"nvfp4_expand_{to}" in text


def test_given_scales_lower_for_cuda(lower_for_cuda):
    text = lower_for_cuda(
        lambda c, b, t, s: nvfp4_expand(c, b, t, scales=s, implementation="mosaic_gpu"),
        *stored(6, 256),
        jnp.ones(6),
    )
    assert "nvfp4_expand_int8" in text


def test_refuses_rows_that_do_not_fit_registers():
    with pytest.raises(NotImplementedError, match="up to 32768, found 32784"):
        nvfp4_expand(*stored(1, 32784), implementation="mosaic_gpu")


def test_mismatched_scales_name_both_shapes():
    codes, block_scales, tensor_scale = stored(4, 32)
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(3, 2\)"):
        nvfp4_expand(codes, block_scales[:3], tensor_scale)
    with pytest.raises(ValueError, match="scales only with 'int8'"):
        nvfp4_expand(
            codes, block_scales, tensor_scale, to="bfloat16", scales=jnp.ones(4)
        )
