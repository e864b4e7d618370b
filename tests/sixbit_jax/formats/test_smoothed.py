"""`SmoothedArray`: the division and the weight cancel, in every linear and route."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.formats import (
    NVFP4Array,
    SmoothedArray,
    UniformArray,
    stored_layout,
)
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteControl, SiteOptions, run_site
from sixbit_jax.routes import Route


@pytest.fixture(scope="module")
def parts() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Activation [1, 32, 128] with two loud channels, weight, and their divisor."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 128))
    x[..., [3, 70]] *= 60
    w = rng.standard_normal((16, 128))
    divisor = np.sqrt(np.abs(x).max((0, 1)) / np.abs(w).max(0))
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, w, divisor))


def smoothed(w: jax.Array, divisor: jax.Array) -> SmoothedArray:
    return SmoothedArray(UniformArray.quantize(w * divisor, bits=8), divisor)


def test_linear_and_routes_divide_the_activation(parts):
    x, w, divisor = parts
    expected = np.asarray(x @ w.T)
    linear = Linear(128, 16, bias=False, rngs=nnx.Rngs(0))
    errors = {}
    for name, weight in (
        ("smoothed", smoothed(w, divisor)),
        ("plain", UniformArray.quantize(w, bits=8)),
    ):
        linear.weight = nnx.Param(weight)
        np.testing.assert_allclose(linear(x), expected, atol=3.0)
        for route in (Route.INT8, Route.INT4, Route.BF16):
            control = SiteControl(jnp.int32(route), jnp.float32(jnp.inf))
            options = SiteOptions(routes=(route,))
            (y,), _ = run_site(x, [linear], control, options)
            difference = np.linalg.norm(y - expected) / np.linalg.norm(expected)
            errors[name, route] = difference
    assert errors["smoothed", Route.BF16] < 0.01
    for route in (Route.INT8, Route.INT4):
        assert errors["smoothed", route] < 0.5 * errors["plain", route]


def test_is_stored_with_what_is_inside(parts):
    _, w, divisor = parts
    for inner in (
        UniformArray.quantize(w, bits=3, rotation=64),
        NVFP4Array.quantize(w),
    ):
        array = SmoothedArray(inner, divisor)
        assert (array.shape, array.rotation) == (w.shape, inner.rotation)
        assert array.nbytes == inner.nbytes + 4 * 128
        kind, layout = stored_layout(array.format_name, array.shape)
        found = {k: (a.shape, a.dtype) for k, a in array.arrays().items()}
        assert layout == found
        again = kind.from_arrays(array.format_name, array.arrays(), inner.rotation)
        assert jax.tree.structure(again) == jax.tree.structure(array)
    assert stored_layout("smoothed-float7", (8, 64)) is None


def test_refuses_another_number_of_channels(parts):
    _, w, divisor = parts
    with pytest.raises(ValueError, match=r"shape \(128,\), found float32 \(127,\)"):
        SmoothedArray(UniformArray.quantize(w, bits=4), divisor[1:])
