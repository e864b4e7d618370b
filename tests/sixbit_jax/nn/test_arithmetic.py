"""Every route from every stored format, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.numerics import int8, nvfp4
from sixbit_jax.formats import NVFP4Array, UniformArray, rotate
from sixbit_jax.nn.fusion import GatedResidual, Gelu, Identity
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteControl, SiteOptions, run_site
from sixbit_jax.nn.token_levels import channel_scales, token_levels
from sixbit_jax.routes import Route

K, N, BLOCK = 128, 16, 32
FORMATS = {
    "nvfp4": lambda w: NVFP4Array.quantize(w, rotation=128),
    "uniform4": lambda w: UniformArray.quantize(w, bits=4, rotation=128),
    "uniform8": lambda w: UniformArray.quantize(w, bits=8),
}


@pytest.fixture(scope="module")
def x() -> jax.Array:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 6, K)) * np.exp(rng.standard_normal(K))
    return jnp.asarray(values, jnp.float32)


def linear_of(stored: str) -> Linear:
    linear = Linear(K, N, rngs=nnx.Rngs(0))
    linear.bias = nnx.Param(jnp.arange(N, dtype=jnp.float32))
    linear.weight = nnx.Param(FORMATS[stored](linear.weight[...]))
    return linear


def quantized(r: jax.Array, route: Route) -> np.ndarray:
    """The activation as a route sees it: the formulas of `Route`, value by value."""
    match route:
        case Route.BF16:
            return np.asarray(r)
        case Route.NVFP4:
            # one tensor scale for the whole batch
            flat = nvfp4.fake_quantize(r.reshape(-1, K))
            return np.asarray(flat).reshape(r.shape)
        case Route.INT8:
            return np.asarray(int8.fake_quantize(r))
        case Route.INT4 | Route.INT6:
            s = 1.0
        case Route.ARQ4 | Route.ARQ8:
            s = jnp.repeat(channel_scales(r, BLOCK), BLOCK, -1)[:, None]
        case _:
            s = channel_scales(r)[:, None]
    if route == Route.ARQ_NVFP4:
        return np.asarray(nvfp4.fake_quantize(r / s) * s)
    levels, scales = token_levels(r / s, route.bits)
    return np.asarray(levels * scales[..., None] * s)


@pytest.mark.parametrize("stored", FORMATS)
def test_every_route_is_its_formula_times_the_stored_weight(x, stored):
    linear = linear_of(stored)
    weight = linear.weight.get_value()
    options = SiteOptions(routes=tuple(Route), arq_block=BLOCK)
    run = jax.jit(
        lambda x, route: run_site(
            x, [linear], SiteControl(route, jnp.float32(jnp.inf)), options
        )[0][0]
    )
    for route in Route:
        found = np.asarray(run(x, jnp.int32(route)))
        matrix = weight.dequantize()
        if route in (Route.INT8, Route.INT4, Route.INT6, Route.ARQ4, Route.ARQ8):
            values, scales = weight.expand_int8()
            matrix = values * scales[:, None]
        activation = quantized(rotate(x, weight.rotation), route)
        expected = activation.astype(np.float64) @ np.asarray(matrix, np.float64).T
        np.testing.assert_allclose(
            found, expected + np.arange(N), rtol=1e-4, atol=1e-3, err_msg=route.name
        )


@pytest.mark.parametrize("route", [Route.INT4, Route.ARQ8, Route.ARQ4_CHANNEL])
def test_front_and_residual_stand_around_the_new_routes(x, route):
    linear = linear_of("uniform4")
    gate = jnp.linspace(-1, 1, 2 * N).reshape(2, N)
    residual = GatedResidual(jnp.ones((2, 6, N)), gate, 2 * gate, 2)
    control = SiteControl(jnp.int32(route), jnp.float32(jnp.inf))
    options = SiteOptions(routes=(route,))

    def run(x, front, residual):
        found = run_site(x, [linear], control, options, front=front, residual=residual)
        return found[0][0]

    plain = run(Gelu()(x), Identity(), None)
    np.testing.assert_allclose(
        run(x, Gelu(), residual), residual(plain), rtol=1e-4, atol=1e-4
    )


def test_bits_count_the_activation():
    assert [route.bits for route in Route] == [4, 8, 16, 4, 6, 4, 8, 4, 8, 4]
    assert [Route.NVFP4, Route.INT8, Route.BF16] == [0, 1, 2]
