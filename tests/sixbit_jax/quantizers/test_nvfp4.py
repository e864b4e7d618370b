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


@pytest.mark.parametrize(
    ("recipe", "role", "width", "rotation"),
    [
        (NVFP4Recipe(), "site", 256, 128),
        (NVFP4Recipe(rotation=0), "site", 48, 0),
        (NVFP4Recipe(rotation=0), "site", 40, None),
        (NVFP4Recipe(), "small_batch", 48, 0),
        (NVFP4Recipe(), "small_batch", 40, None),
        (NVFP4Recipe(small_batch=False), "small_batch", 48, None),
        (NVFP4Recipe(), None, 256, None),
    ],
)
def test_the_role_of_a_weight_decides(recipe, role, width, rotation):
    assert recipe.rotation_of(role, width) == rotation


def test_a_width_that_the_rotation_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"rotation of 128: expected a divisor.*192"):
        NVFP4Recipe().rotation_of("site", 192)
