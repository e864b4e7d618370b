"""Recomputing blocks in the backward pass: same gradients, less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.tuning.forward import forward
from tests.sixbit_jax.models.small import small_model


@pytest.fixture(scope="module")
def programs():
    graph, params = nnx.split(small_model(num_layers=8))
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = (
        jax.random.normal(keys[0], (2, 6, 4, 16, 16)),
        jax.random.normal(keys[1], (2, 6, 32)),
        jnp.array([3.0, 500.0]),
    )

    def loss(params, remat):
        found = forward(graph, params, *inputs, remat=remat, features=True)
        return jnp.square(found.prediction).mean() + jnp.square(found.features).mean()

    gradient = jax.grad(loss)
    return params, {
        remat: jax.jit(functools.partial(gradient, remat=remat)).lower(params).compile()
        for remat in (False, True)
    }


def test_gradients_are_the_same(programs):
    params, compiled = programs
    plain, recomputed = (jax.tree.leaves(compiled[r](params)) for r in (False, True))
    for left, right in zip(plain, recomputed, strict=True):
        scale = float(jnp.abs(left).max()) + 1e-6
        np.testing.assert_allclose(left / scale, right / scale, atol=1e-3)


def test_memory_does_not_hold_every_block(programs):
    _, compiled = programs
    temporary = {
        remat: program.memory_analysis().temp_size_in_bytes
        for remat, program in compiled.items()
    }
    assert temporary[True] < 0.4 * temporary[False]
