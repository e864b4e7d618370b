"""Uniform weights and SmoothQuant over a whole model."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax import quantize
from sixbit_jax.formats import SmoothedArray, StoredWeight, UniformArray
from sixbit_jax.quantizers.uniform import (
    UniformRecipe,
    smooth_quantize,
    smoothing_divisor,
)
from tests.sixbit_jax.models.small import small_model


def weights(model) -> dict[str, object]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_every_site_and_small_linear_is_stored(model):
    plain = weights(model)
    found = weights(quantize(model, UniformRecipe(3, rotation=16)))
    for name, value in found.items():
        role = model.weight_role(name)
        fits = plain[name].shape[-1] % 8 == 0
        assert isinstance(value, StoredWeight) == (role is not None and fits), name
        if isinstance(value, UniformArray):
            assert value.bits == 3
            assert value.rotation == (16 if role == "site" else 0)


def test_refined_weights_are_never_worse_than_minmax(model):
    plain = weights(model)
    found = {
        grid: weights(quantize(model, UniformRecipe(4, rotation=0, grid=grid)))
        for grid in ("minmax", "bgr")
    }
    for name, value in found["bgr"].items():
        if isinstance(value, UniformArray):
            errors = [
                ((w.dequantize() - plain[name]) ** 2).sum(-1)
                for w in (value, found["minmax"][name])
            ]
            assert (errors[0] <= errors[1] * (1 + 1e-4)).all(), name


def test_smooth_quantize_moves_the_difficulty_into_listed_weights(model):
    name = next(n for n in weights(model) if model.weight_role(n) == "site")
    plain = weights(model)[name]
    maxima = np.linspace(0.1, 9, plain.shape[-1], dtype=np.float32)
    maxima = np.broadcast_to(maxima, (len(plain), plain.shape[-1]))
    recipe = UniformRecipe(8, rotation=0, grid="minmax")
    found = weights(smooth_quantize(model, {name: jnp.asarray(maxima)}, recipe))
    array = found[name]
    assert isinstance(array, SmoothedArray)
    expected = np.sqrt(maxima / np.abs(plain).max(-2))
    np.testing.assert_allclose(array.divisor, expected, rtol=1e-5)
    back = array.dequantize() / array.divisor[:, None]
    np.testing.assert_allclose(back, plain, atol=0.05 * float(np.abs(plain).max()))
    assert not any(isinstance(w, SmoothedArray) for n, w in found.items() if n != name)


def test_alpha_one_takes_all_of_the_activations_range():
    activation, w = jnp.asarray([1.0, 4.0]), jnp.asarray([[2.0, 8.0], [1.0, 1.0]])
    np.testing.assert_allclose(smoothing_divisor(activation, w, alpha=1.0), [1, 4])
    np.testing.assert_allclose(
        smoothing_divisor(activation, w, alpha=0.0), [1 / 2, 1 / 8]
    )
