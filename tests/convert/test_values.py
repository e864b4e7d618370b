"""Values that a storage format does not hold are refused, whatever the format."""

import numpy as np
import pytest

from convert.choices import WEIGHTS
from convert.errors import ConversionError
from convert.values import store
from sixbit_jax.checkpoint import ParameterSpec
from sixbit_jax.methods.weights import weight_recipe

SHAPE = (8, 256)
FORMATS = [name for name in WEIGHTS if name != "keep"]


def _weight(scale, seed=0):
    noise = np.random.default_rng(seed).standard_normal(SHAPE)
    return (noise / np.abs(noise).max() * scale).astype(np.float32)


@pytest.mark.parametrize("rotation", [0, 128])
@pytest.mark.parametrize("name", FORMATS)
def test_the_range_of_float32_is_the_range_of_every_format_or_an_error(name, rotation):
    """What is stored is near to what was given, or nothing is stored."""
    spec = ParameterSpec(SHAPE, name, rotation)
    for scale in (1.0, 1e20, 1e31, 3e33, 1e35, 1e37, 3.4e38):
        weight = _weight(scale)
        try:
            stored = store(weight, spec, "w", weight_recipe(name))
        except ConversionError:
            assert scale > 1e30
            continue
        found = np.asarray(stored.dequantize("float32"), np.float64)
        assert np.isfinite(found).all()
        if rotation == 0:
            error = np.linalg.norm(found - weight) / np.linalg.norm(
                weight.astype(np.float64)
            )
            assert error < 0.75


@pytest.mark.parametrize("name", ["uniform4", "uniform8"])
def test_a_uniform_range_that_overflows_is_refused(name):
    weight = _weight(1.0)
    weight[3, :2] = 3e38, -3e38
    with pytest.raises(ConversionError, match=r"w: .*expected"):
        store(weight, ParameterSpec(SHAPE, name), "w", weight_recipe(name))


def test_nvfp4_says_that_it_saturates():
    with pytest.raises(ConversionError, match=r"w: .*nvfp4"):
        store(
            _weight(3.3e38),
            ParameterSpec(SHAPE, "nvfp4"),
            "w",
            weight_recipe("nvfp4"),
        )


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_the_smallest_values_stay_finite(name):
    for weight in (np.zeros(SHAPE, np.float32), _weight(1e-38), _weight(1e-44)):
        stored = store(weight, ParameterSpec(SHAPE, name), "w", weight_recipe(name))
        assert np.isfinite(np.asarray(stored.dequantize("float32"))).all()
