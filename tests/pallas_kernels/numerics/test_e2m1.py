"""E2M1 codes against ml_dtypes, exhaustively where there are few."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.numerics import bits, e2m1

CODES = np.arange(16, dtype=np.uint8)
VALUES = CODES.view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def test_encode_rounds_like_ml_dtypes():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            rng.standard_normal(20_000).astype(np.float32) * 3,
            np.arange(-64, 65, dtype=np.float32) / 8,  # every tie
            np.nextafter(np.arange(-64, 65, dtype=np.float32) / 8, np.float32(9)),
            np.nextafter(np.arange(-64, 65, dtype=np.float32) / 8, np.float32(-9)),
            np.array([0.0, -0.0, 1e30, -1e30], np.float32),
        ]
    )
    expected = x.clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(e2m1.encode(x), expected)
    np.testing.assert_array_equal(jax.jit(e2m1.encode)(x), expected)


def test_encode_takes_bfloat16_and_saturates_infinity():
    x = jnp.array([jnp.inf, -jnp.inf, 0.75, jnp.nan], jnp.bfloat16)
    np.testing.assert_array_equal(e2m1.encode(x)[:3], [7, 15, 2])
    assert int(e2m1.encode(x)[3]) & 7 == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_decode_is_exact_in_every_type(dtype):
    decoded = e2m1.decode(CODES, dtype)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(np.asarray(decoded, np.float32), VALUES)
    np.testing.assert_array_equal(np.signbit(decoded), CODES >= 8)


def test_encode_inverts_decode():
    np.testing.assert_array_equal(e2m1.encode(e2m1.decode(CODES)), CODES)


def test_round_scaled_is_decode_of_encode_scaled():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 32)).astype(np.float32)
    step = rng.uniform(0.05, 0.6, (64, 1)).astype(np.float32)
    values = e2m1.round_scaled(x, step)
    expected = e2m1.decode(e2m1.encode_scaled(x, step))
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.signbit(values), np.signbit(expected))


def test_even_index_is_in_the_low_nibble():
    packed = e2m1.pack(jnp.array([[1, 2, 15, 0]], jnp.uint8))
    np.testing.assert_array_equal(packed, [[0x21, 0x0F]])


def test_unpack_inverts_pack_for_all_bytes():
    codes = np.stack(np.meshgrid(CODES, CODES), -1).reshape(2, 256)
    np.testing.assert_array_equal(e2m1.unpack(e2m1.pack(codes)), codes)
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(e2m1.pack(e2m1.unpack(every)), every)


def test_pack_refuses_an_odd_axis():
    with pytest.raises(ValueError, match=r"even last axis.*\(2, 3\)"):
        e2m1.pack(jnp.zeros((2, 3), jnp.uint8))


def test_e4m3_rounds_like_ml_dtypes_and_saturates():
    grid = np.arange(0, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    grid = grid.astype(np.float32)
    middle = (grid[1:] + grid[:-1]) / 2
    rng = np.random.default_rng(2)
    x = np.concatenate(
        [
            grid,
            middle,
            np.nextafter(middle, np.float32(0)),
            np.nextafter(middle, np.float32(1e9)),
            rng.uniform(0, 448, 20_000).astype(np.float32),
            rng.uniform(0, 0.03, 20_000).astype(np.float32),
        ]
    )
    # from float64: ml_dtypes rounds once
    expected = x.astype(np.float64).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(jax.jit(bits.encode_e4m3)(x), expected.view(np.uint8))
    assert (
        bits.round_e4m3(jnp.array([1e9, jnp.inf])).astype(float).tolist() == [448] * 2
    )
    assert bool(jnp.isnan(bits.round_e4m3(jnp.float32(jnp.nan)).astype(jnp.float32)))


def test_reciprocal_is_the_truncated_quotient():
    rng = np.random.default_rng(3)
    x = np.concatenate(
        [
            rng.uniform(1, 2, 5_000).astype(np.float32) * np.float32(2) ** np.float32(k)
            for k in (-126, -100, -1, 0, 50, 102)
        ]
        + [np.float32(2) ** np.arange(-126, 103, dtype=np.float32)]
    )
    exact = 1.0 / x.astype(np.float64)
    ours = np.asarray(jax.jit(bits.reciprocal)(x), np.float64)
    assert (ours <= exact).all()
    above = np.nextafter(ours.astype(np.float32), np.float32(np.inf))
    assert (above.astype(np.float64) > exact).all()
