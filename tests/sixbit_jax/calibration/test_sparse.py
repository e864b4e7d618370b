"""The threshold of sparse attention, from recorded runs and a target share."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from sixbit_jax.calibration import find_sparse_tau


def recorder(seen: list[float] | None = None):
    """Runs whose keys pass the test as normal scores would; block 0 is dense."""

    def record(tau: float):
        if seen is not None:
            seen.append(tau)
        share = 0.2 + 0.8 * (0.5 - 0.5 * math.erf(tau / math.sqrt(2)))
        density = np.full((4, 2, 3), share)
        density[:, :, 0] = 1.0
        skip = np.zeros(density.shape, bool)
        # What was skipped must not count.
        skip[2, :, 1] = True
        density[skip] = 0.0
        return [SimpleNamespace(attention_density=density, skip=skip)] * 2

    return record


@pytest.mark.parametrize("share", [0.9, 0.6, 0.5])
def test_the_recorded_runs_compute_the_share(share):
    seen: list[float] = []
    fit = find_sparse_tau(recorder(seen), share)
    assert fit.density == pytest.approx(share, abs=0.005)
    assert [tau for tau, _ in fit.tried] == seen
    assert len(seen) <= 7
    assert (fit.tau, fit.density) in fit.tried
    (trace, _) = recorder()(fit.tau)
    assert trace.attention_density[~trace.skip].mean() == pytest.approx(fit.density)


def test_a_share_below_what_is_always_computed_is_refused():
    # 8 of 22 blocks that ran are dense, of the others a fifth is always computed.
    with pytest.raises(ValueError, match=r"0\.3 .*nearest .* 0\.4"):
        find_sparse_tau(recorder(), 0.3)


@pytest.mark.parametrize(
    "change", [{"share": 0.0}, {"share": 1.1}, {"low": 5.0}, {"tolerance": 0.0}]
)
def test_bounds_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match="expected 0 < share"):
        find_sparse_tau(recorder(), **({"share": 0.5} | change))


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="found none"):
        find_sparse_tau(lambda _: [], 0.5)
