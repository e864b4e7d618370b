"""`quantize`: which weights of a model become NVFP4, and how."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from sixbit_jax import NVFP4Array, NVFP4Recipe, quantize
from sixbit_jax.formats import rotate
from tests.sixbit_jax.models.small import small_model


def weights(model: nnx.Module) -> dict[str, Any]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def error(stored: NVFP4Array, weight: jax.Array) -> float:
    if stored.rotation:
        weight = rotate(weight, stored.rotation)
    return float(((stored.dequantize() - weight) ** 2).sum())


@pytest.mark.slow
def test_refining_changes_the_values_of_the_same_arrays():
    model = small_model()
    before = weights(model)
    plain = weights(quantize(model))
    refined = weights(quantize(model, NVFP4Recipe(refine=True)))
    compressed = {n for n, w in plain.items() if isinstance(w, NVFP4Array)}
    assert compressed == {n for n, w in refined.items() if isinstance(w, NVFP4Array)}
    assert "transformer_blocks.ff.up.weight" in compressed
    assert set(before) == set(refined)
    for name, weight in before.items():
        if name in compressed:
            assert refined[name].rotation == plain[name].rotation
            assert error(refined[name], weight) < 0.9 * error(plain[name], weight)
        else:
            np.testing.assert_array_equal(refined[name], weight)
