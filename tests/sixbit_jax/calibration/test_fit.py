"""The fit of the error predictor."""

from types import SimpleNamespace

import numpy as np
import pytest

from sixbit_jax.calibration import Recording, fit_predictor, plot_fit
from tests.sixbit_jax.calibration.runs import SITES, law, recording


@pytest.mark.parametrize("skips", [0.0, 0.3])
def test_a_linear_law_is_recovered_exactly(skips):
    fit = fit_predictor(recording(skips=skips), SITES)
    alpha, beta = law()
    np.testing.assert_allclose(fit.predictor.alpha, alpha, atol=1e-6)
    np.testing.assert_allclose(fit.predictor.beta, beta, atol=1e-6)
    np.testing.assert_allclose(fit.pearson, 1.0)
    np.testing.assert_allclose(fit.r_squared, 1.0)
    np.testing.assert_allclose(fit.site_r_squared, 1.0)


def test_least_squares_is_numpys():
    runs = recording(noise=0.05, skips=0.2)
    fit = fit_predictor(runs, SITES)
    block, site = 1, 2
    x = runs.known_gamma()[..., block].ravel()
    y = runs.error[..., block, site].ravel()
    keep = np.isfinite(x) & np.isfinite(y)
    slope, intercept = np.polyfit(x[keep], y[keep], 1)
    r = np.corrcoef(x[keep], y[keep])[0, 1]
    assert fit.predictor.alpha[block, site] == pytest.approx(slope, rel=1e-5)
    assert fit.predictor.beta[block, site] == pytest.approx(intercept, rel=1e-5)
    assert fit.pearson[block, site] == pytest.approx(r)
    assert fit.r_squared[block, site] == pytest.approx(r**2)
    assert fit.pairs[block, site] == keep.sum()


def test_figures_of_a_site_pool_its_blocks():
    runs = recording(noise=0.05)
    fit = fit_predictor(runs, SITES)
    site = 3
    x = runs.known_gamma()[:, 1:].ravel()
    y = runs.error[:, 1:, ..., site]
    predicted = (
        fit.predictor.alpha[:, site] * runs.known_gamma()[:, 1:]
        + fit.predictor.beta[:, site]
    )
    total = ((y - y.mean()) ** 2).sum()
    assert fit.site_pearson[site] == pytest.approx(np.corrcoef(x, y.ravel())[0, 1])
    assert fit.site_r_squared[site] == pytest.approx(
        1 - ((y - predicted) ** 2).sum() / total, rel=1e-5
    )
    within = ((y - y.mean((0, 1, 2))) ** 2).sum()
    assert fit.site_r_squared_constant[site] == pytest.approx(1 - within / total)


def test_summary_is_json_and_names_the_sites():
    summary = fit_predictor(recording(noise=0.02), SITES).summary()
    assert tuple(summary) == SITES
    for figures in summary.values():
        assert figures["r_squared"] >= figures["r_squared_without_gamma"]
        assert figures["pairs"] == 4 * 11 * 2 * 3
        assert all(isinstance(value, int | float) for value in figures.values())


def test_pairs_join_gamma_with_the_error_of_the_next_step():
    gamma = np.zeros((1, 4, 1, 1))
    gamma[0, :, 0, 0] = [0.1, 0.3, 0.2, 9.0]
    error = np.zeros((1, 4, 1, 1, 1))
    error[0, :, 0, 0, 0] = [7.0, 0.1, 0.3, 0.2]
    fit = fit_predictor(Recording(gamma, error, np.zeros(gamma.shape, bool)), ("a",))
    assert fit.predictor.alpha[0, 0] == pytest.approx(1.0)
    assert fit.predictor.beta[0, 0] == pytest.approx(0.0, abs=1e-7)


def test_values_that_are_not_finite_are_left_out():
    runs = recording()
    runs.gamma[0, 3] = np.nan
    runs.error[1, 5, 0, 2] = np.inf
    fit = fit_predictor(runs, SITES)
    np.testing.assert_allclose(fit.predictor.alpha, law()[0], atol=1e-6)


def test_a_constant_gamma_predicts_the_mean():
    runs = recording(noise=0.01)
    runs.gamma[:] = 0.25
    fit = fit_predictor(runs, SITES)
    assert (fit.predictor.alpha == 0).all()
    mean = runs.error[:, 1:].mean((0, 1, 2))
    np.testing.assert_allclose(fit.predictor.beta, mean, rtol=1e-5)
    assert (fit.pearson == 0).all()


def test_another_signal_can_be_compared():
    runs = recording(noise=0.01)
    noise = np.random.default_rng(1).random(runs.gamma.shape)
    by_gamma, by_noise = (
        fit_predictor(runs, SITES),
        fit_predictor(runs, SITES, signal=noise),
    )
    assert (by_gamma.pearson > by_noise.pearson).all()
    with pytest.raises(ValueError, match="expected a signal of shape"):
        fit_predictor(runs, SITES, signal=noise[:1])


def test_runs_without_errors_are_refused():
    runs = recording()
    runs.error[..., 2, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"block 2, site attn_out has 0 .*record_errors"
    ):
        fit_predictor(runs, SITES)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 site names"):
        fit_predictor(recording(), SITES[:3])
    with pytest.raises(ValueError, match="at least 2 steps, found 1"):
        fit_predictor(recording(steps=1), SITES)
    runs = recording()
    with pytest.raises(ValueError, match="a recording needs"):
        fit_predictor(runs._replace(skip=runs.skip[:1]), SITES)


def test_traces_are_stacked():
    runs = recording()
    traces = [
        SimpleNamespace(gamma=g, error=e, skip=s)
        for g, e, s in zip(*runs[:3], strict=True)
    ]
    stacked = Recording.from_traces(traces)
    for ours, theirs in zip(stacked, runs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="no trace"):
        Recording.from_traces([])
    traces[1].error = traces[1].error[:5]
    with pytest.raises(ValueError, match="one shape"):
        Recording.from_traces(traces)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_an_image(tmp_path, suffix):
    runs = recording(noise=0.02, skips=0.2)
    path = tmp_path / f"fit.{suffix}"
    plot_fit(runs, fit_predictor(runs, SITES), path, max_points=100)
    start = path.read_bytes()[:64]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start


def test_a_site_that_a_block_does_not_have_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    gamma = rng.uniform(0.1, 0.5, (2, 6, 1, 2))
    error = np.stack([0.2 * np.roll(gamma, 1, 1) + 0.01] * 2, -1)
    error[:, :, :, 0, 1] = np.nan
    recording = Recording(gamma, error, np.zeros(gamma.shape, bool))
    present = np.array([[True, False], [True, True]])
    fit = fit_predictor(recording, ("both", "second"), present=present)
    np.testing.assert_allclose(fit.predictor.alpha, [[0.2, 0.0], [0.2, 0.2]], atol=1e-6)
    assert fit.predictor.beta[0, 1] == 0.0
    assert fit.summary()["second"]["pearson_within_blocks"] == pytest.approx(1.0)
    plot_fit(recording, fit, tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="block 0, site second has 0 valid pairs"):
        fit_predictor(recording, ("both", "second"))
