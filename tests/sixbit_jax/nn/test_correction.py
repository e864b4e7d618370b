"""Every route adds the correction of what it multiplies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.formats import CorrectedArray, UniformArray, stored_layout
from sixbit_jax.nn.arithmetic import Work
from sixbit_jax.nn.correction import as_quantized
from sixbit_jax.nn.fusion import GatedResidual, Gelu
from sixbit_jax.nn.linear import Affine
from sixbit_jax.routes import Route

ROWS, K, N = 2 + 3 * 4, 128, 32


def draw(number, *shape):
    return jax.random.normal(jax.random.key(number), shape)


X = draw(0, 1, ROWS, K)
PACKED = UniformArray.quantize(draw(1, N, K), bits=4)
CORRECTED = CorrectedArray(
    PACKED, draw(2, 1, K), draw(3, N, 1), draw(4, 4), text_rows=2
)


def work(weights, residual=None):
    affines = [Affine(weight, None) for weight in weights]
    return Work(affines, Gelu(), residual, "reference")


@pytest.mark.parametrize(
    "route", [Route.BF16, Route.INT8, Route.INT6, Route.INT4, Route.NVFP4, Route.ARQ8]
)
def test_the_update_stands_before_the_gate(route):
    gate, text_gate = draw(5, 1, N), draw(6, 1, N)
    residual = GatedResidual(draw(7, 1, ROWS, N), gate, text_gate, 2)

    @jax.jit
    def run(x):
        return [
            work([weight], residual).route(route)(x)[0]
            for weight in (CORRECTED, PACKED)
        ]

    corrected, plain = run(X)
    read = as_quantized(Gelu()(X), route)
    per_row = jnp.repeat(CORRECTED.factors, jnp.array([2, 4, 4, 4]))[:, None]
    update = per_row * (read @ CORRECTED.down.T) @ CORRECTED.up.T
    gates = jnp.concatenate([jnp.tile(text_gate, (2, 1)), jnp.tile(gate, (12, 1))])
    np.testing.assert_allclose(corrected - plain, gates * update, atol=2e-3)


def test_neighbours_without_a_correction_are_left_alone():
    both = work([CORRECTED, PACKED]).route(Route.INT6)(X)
    alone = work([PACKED])
    np.testing.assert_allclose(both[1], alone.route(Route.INT6)(X)[0], atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_it_is_stored_and_found_by_its_name():
    kind, layout = stored_layout(CORRECTED.format_name, (N, K))
    assert kind is CorrectedArray
    arrays = CORRECTED.arrays()
    assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == layout
    again = kind.from_arrays(CORRECTED.format_name, arrays, 0)
    assert again.text_rows == 2
    np.testing.assert_array_equal(again.dequantize(), CORRECTED.dequantize())
    assert CORRECTED.nbytes == PACKED.nbytes + 4 * (K + N + 4)


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match=r"down of a weight \(32, 128\): expected"):
        CorrectedArray(PACKED, draw(2, 1, K + 1), CORRECTED.up, CORRECTED.factors)
    rotated = UniformArray.quantize(draw(1, N, K), bits=4, rotation=16)
    with pytest.raises(ValueError, match="must not be rotated"):
        CorrectedArray(rotated, CORRECTED.down, CORRECTED.up, CORRECTED.factors)
