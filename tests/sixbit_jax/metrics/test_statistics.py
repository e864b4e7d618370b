"""Confidence intervals of means."""

import math

import numpy as np
import pytest

from sixbit_jax.metrics import mean_interval, paired_interval


@pytest.mark.parametrize(
    ("confidence", "count", "quantile"),
    [
        (0.95, 2, 12.7062047364),
        (0.95, 3, 4.3026527297),
        (0.95, 4, 3.1824463053),
        (0.95, 5, 2.7764451052),
        (0.95, 11, 2.2281388520),
        (0.95, 31, 2.0422724563),
        (0.95, 256, 1.9693105698),
        (0.99, 10, 3.2498355416),
        (0.5, 2, 1.0),
    ],
)
def test_interval_uses_the_tabulated_t_quantiles(confidence, count, quantile):
    values = np.arange(count, dtype=np.float64)
    deviation = math.sqrt(count * (count + 1) / 12)
    interval = mean_interval(values, confidence=confidence)
    assert interval.mean == (count - 1) / 2
    assert interval.count == count
    expected = quantile * deviation / math.sqrt(count)
    assert interval.half_width == pytest.approx(expected, rel=1e-8)
    assert interval.low + interval.high == pytest.approx(2 * interval.mean)


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 6))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([i.low <= 3.0 <= i.high for i in intervals])
    # Three standard errors of a share of 0.95 over 2000 draws.
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_equal_values_have_no_width():
    assert mean_interval([2.5, 2.5, 2.5])[:3] == (2.5, 2.5, 2.5)


def test_pairing_cancels_what_pairs_share():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 10, 50)
    baseline = shared + rng.normal(0, 0.1, 50)
    interval = paired_interval(shared + 1, baseline)
    assert interval.low < 1 < interval.high
    assert interval.half_width < mean_interval(shared).half_width / 20


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least 2 values, found 1"),
        ([1.0, math.inf, math.nan], {}, "2 of 3 not finite"),
        ([1.0, 2.0], {"confidence": 95}, r"in \(0, 1\), found 95"),
    ],
)
def test_values_without_an_interval_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, **options)


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        paired_interval([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 of 2 pairs not finite"):
        paired_interval([1, math.inf], [1, math.inf])
