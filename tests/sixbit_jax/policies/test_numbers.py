"""Numbers of policies are numbers, and nothing that Python would make one."""

import numpy as np
import pytest

from sixbit_jax.policies._common import checked_count, checked_number


@pytest.mark.parametrize(
    "value", ["0.5", "false", b"1", True, np.True_, None, [0.5], 10**400, np.nan, -1.0]
)
def test_what_is_no_number_in_range_is_refused_by_name(value):
    with pytest.raises(ValueError, match="policy: threshold must be"):
        checked_number("policy", "threshold", value, finite=True)


@pytest.mark.parametrize("value", ["3", 3.0, True, None, [3], 0, -(10**400)])
def test_what_is_no_count_is_refused_by_name(value):
    with pytest.raises(ValueError, match="policy: steps must be") as error:
        checked_count("policy", "steps", value, low=1)
    assert len(str(error.value)) < 300


def test_numbers_of_numpy_are_numbers():
    assert checked_number("policy", "threshold", np.float32(0.5)) == 0.5
    assert checked_count("policy", "steps", np.int64(3), low=1) == 3
