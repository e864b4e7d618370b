"""FZ-RMQ: what the joint fit guarantees, and who gets the bits."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from sixbit_jax.formats import rotate
from sixbit_jax.formats.uniform_grid import decode_uniform, encode_uniform
from sixbit_jax.methods.mpq_dm.residual_weights import (
    SHARES,
    fit_residual,
    fz_rmq,
    kurtosis,
    select,
)
from sixbit_jax.quantizers.refine_uniform import refined_grid
from sixbit_jax.quantizers.residual_fit import (
    KINDS,
    basis,
    decode,
    fit_levels,
    nearest_codes,
)
from tests.sixbit_jax.quantizers.weights import heavy_tailed, matrices

SHAPE = (8, 64)
# Squares are summed in float32 by the fit, in float64 here.
ROUNDING = 1 + 1e-4


def squares(array, w: np.ndarray) -> np.ndarray:
    """Squared error of each row, float64."""
    return ((np.asarray(array, np.float64) - w) ** 2).sum(-1)


def fitted(w: np.ndarray, method: str) -> np.ndarray:
    """Values of w on the fitted levels with 2-bit base, [kinds, N, K] float64."""
    levels, _ = fit_levels(w, np.sort(w, -1), base_bits=2, method=method)
    codes = nearest_codes(w, levels, base_bits=2)
    return np.asarray(decode(codes, levels, base_bits=2), np.float64)


def planted(rows: int = 40, heavy: int = 8, flat: int = 8) -> np.ndarray:
    """Normal rows, heavy tails in front, two-valued ones at the end."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, 256))
    w[:heavy] = rng.standard_t(2.0, (heavy, 256))
    w[-flat:] = np.sign(w[-flat:]) + 0.01 * w[-flat:]
    return w.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(w=matrices(SHAPE))
def test_joint_fit_is_never_worse_than_the_uniform_grid_of_its_bits(w):
    joint, uniform = (squares(fitted(w, m), w) for m in ("joint", "uniform"))
    tiny = np.finfo(np.float32).eps ** 2 * (w.astype(np.float64) ** 2).sum(-1)
    assert (joint <= uniform * ROUNDING + tiny).all()


@settings(max_examples=40, deadline=None)
@given(w=matrices(SHAPE))
def test_matrix_is_never_worse_than_the_uniform_grid_of_n_bits(w):
    mixed = fz_rmq(w, 3)
    uniform = fz_rmq(w, 3, method="uniform", shares=(0.0,))
    total = (w.astype(np.float64) ** 2).sum()
    assert squares(mixed.dequantize(), w).sum() <= (
        squares(uniform.dequantize(), w).sum() * ROUNDING + 1e-13 * total
    )


@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_joint_fit_beats_refined_integer_grids_and_greedy_branches(bits):
    w = heavy_tailed((40, 256))
    grid = refined_grid(w, bits)
    refined = squares(decode_uniform(encode_uniform(w, grid, bits), grid), w)
    joint = squares(fz_rmq(w, bits, shares=(0.0,)).dequantize(), w)
    greedy = squares(fz_rmq(w, bits, shares=(0.0,), method="greedy").dequantize(), w)
    assert joint.sum() < 0.99 * refined.sum()
    assert joint.sum() < 0.99 * greedy.sum()
    uniform = squares(fz_rmq(w, bits, shares=(0.0,), method="uniform").dequantize(), w)
    # The start is a good uniform grid, not just any.
    assert uniform.sum() < 1.02 * refined.sum()


def test_levels_are_the_least_squares_of_their_codes():
    w = heavy_tailed((40, 256))
    levels, errors = fit_levels(w, np.sort(w, -1), base_bits=2)
    codes = np.asarray(nearest_codes(w, levels, base_bits=2))
    for kind in range(KINDS):
        for row in range(len(w)):
            columns = basis(2, kind)[codes[kind, row], : 2 + kind].astype(np.float64)
            best = np.linalg.lstsq(columns, w[row].astype(np.float64))[1]
            assert errors[kind, row] <= 1.03 * best[0]
    np.testing.assert_allclose(errors, squares(fitted(w, "joint"), w), rtol=1e-4)


def test_constant_and_empty_rows_are_exact():
    w = np.repeat(np.float32([0.0, 1e-6, -3.7, 1e20] * 2)[:, None], 64, -1)
    np.testing.assert_array_equal(fz_rmq(w, 3).dequantize(), w)


def test_rows_of_few_values_are_exact():
    values = np.float32([-1.5, -0.5, 0.5, 1.5])
    w = values[np.random.default_rng(0).integers(0, 4, SHAPE)]
    np.testing.assert_allclose(fz_rmq(w, 3).dequantize(), w, atol=1e-5)


def test_stacks_are_quantized_layer_by_layer():
    w = np.stack([heavy_tailed(SHAPE, seed) for seed in range(3)])
    stacked = fz_rmq(w, 3)
    assert stacked.shape == w.shape
    for layer in range(3):
        np.testing.assert_allclose(
            stacked.dequantize()[layer], fz_rmq(w[layer], 3).dequantize(), atol=1e-5
        )


def test_rotation_is_folded_in():
    w = heavy_tailed((40, 256))
    array = fz_rmq(w, 3, rotation=128)
    turned = np.asarray(rotate(jnp.asarray(w), 128))
    assert array.rotation == 128
    np.testing.assert_allclose(
        array.dequantize(), fz_rmq(turned, 3).dequantize(), atol=1e-5
    )


def test_kurtosis_of_known_distributions():
    rng = np.random.default_rng(0)
    flat = np.sign(rng.standard_normal(4096))
    w = np.stack([flat, 1e-20 * flat, rng.uniform(-1, 1, 4096), 0 * flat])
    found = kurtosis(np.concatenate([w, rng.standard_normal((1, 4096))]))
    np.testing.assert_allclose(found, [1, 1, 1.8, 0, 3], atol=0.2)


def test_heavy_tails_are_salient():
    w = planted()
    array, chosen = fz_rmq(w, 3), fit_residual(w, 3).selection
    assert 4 <= array.num_salient <= 16
    assert (array.position[:8] < 8).all()
    assert (array.position[-8:] >= 32).all()
    assert chosen.error.shape == (len(SHARES),)
    found = squares(array.dequantize(), w).sum()
    np.testing.assert_allclose(chosen.error.min(), found, rtol=1e-3)
    assert found < 0.7 * chosen.error[0]


def test_selection_by_error_is_never_worse_than_by_kurtosis_here():
    w = heavy_tailed((40, 256)) * np.random.default_rng(1).uniform(0.2, 5, (40, 1))
    w = w.astype(np.float32)
    by = {
        name: squares(fz_rmq(w, 3, salience=name).dequantize(), w).sum()
        for name in ("kurtosis", "error")
    }
    assert by["error"] < by["kurtosis"]


def test_select_counts_and_ranks():
    errors = np.array(
        [[9.0, 1.0, 0.0], [5.0, 5.0, 5.0], [8.0, 4.0, 1.0], [2, 1, 1]], np.float32
    )
    chosen = select(np.array([0.0, 1.0, 3.0, 2.0]), errors, (0.0, 0.25, 0.5))
    np.testing.assert_array_equal(chosen.position, [3, 2, 0, 1])
    # 4 + 1 + 5 + 1 without; the third row gets a branch and the first loses one; then
    # also the fourth and the second.
    np.testing.assert_allclose(chosen.error, [11, 16, 16])
    assert chosen.num_salient == 0


def test_inputs_decide_by_the_error_of_the_output():
    w = planted()
    rng = np.random.default_rng(2)
    x = rng.standard_normal((32, 256)).astype(np.float32)
    x *= np.where(np.arange(256) < 8, 20.0, 0.1)
    array = fz_rmq(w, 3, inputs=x)
    chosen = fit_residual(w, 3, inputs=x).selection
    output = ((np.asarray(array.dequantize(), np.float64) - w) @ x.T) ** 2
    np.testing.assert_allclose(output.sum(), chosen.error.min(), rtol=1e-3)


def test_refuses_what_it_cannot_store():
    w = heavy_tailed(SHAPE)
    with pytest.raises(ValueError, match="from 2 to 4, found 5"):
        fz_rmq(w, 5)
    with pytest.raises(ValueError, match="from 2 to 4, found True"):
        fz_rmq(w, True)
    with pytest.raises(ValueError, match=r"multiple of 8, found shape \(8, 60\)"):
        fz_rmq(w[:, :60], 3)
    with pytest.raises(ValueError, match="method: expected one of"):
        fz_rmq(w, 3, method="best")
    with pytest.raises(ValueError, match="salience: expected one of"):
        fz_rmq(w, 3, salience="size")
    with pytest.raises(ValueError, match=r"shares: expected numbers from 0 to 0\.5"):
        fz_rmq(w, 3, shares=(0.6,))
    with pytest.raises(ValueError, match=r"inputs: expected .*found \(5, 32\)"):
        fz_rmq(w, 3, inputs=np.zeros((5, 32), np.float32))


def test_levels_hold_a_uniform_grid_exactly():
    w = np.float32(np.random.default_rng(0).integers(0, 8, SHAPE))
    error = fit_levels(w, np.sort(w, -1), base_bits=2)[1]
    np.testing.assert_allclose(error[1:], 0.0, atol=1e-6)
