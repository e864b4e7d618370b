"""Which weight is stored how."""

import pytest

from sixbit_jax import NVFP4Recipe, UniformRecipe
from sixbit_jax.methods.mpq_dm.weight_recipe import ResidualRecipe
from sixbit_jax.methods.q_vdit.tune import RangeSearchRecipe
from sixbit_jax.quantizers.storage import rotation_of


@pytest.mark.parametrize(
    ("recipe", "role", "width", "rotation"),
    [
        (NVFP4Recipe(), "site", 256, 128),
        (NVFP4Recipe(), "site", 192, 0),
        (NVFP4Recipe(rotation=0), "site", 48, 0),
        (NVFP4Recipe(rotation=0), "site", 40, None),
        (NVFP4Recipe(), "small_batch", 48, 0),
        (NVFP4Recipe(), "small_batch", 256, 0),
        (NVFP4Recipe(), "small_batch", 40, None),
        (NVFP4Recipe(small_batch=False), "small_batch", 48, None),
        (NVFP4Recipe(), None, 256, None),
        (UniformRecipe(4), "site", 256, 128),
        (UniformRecipe(4), "site", 40, 0),
        (UniformRecipe(4), "site", 36, None),
        (ResidualRecipe(3), "site", 256, 0),
        (ResidualRecipe(3, rotation=128), "site", 256, 128),
        (RangeSearchRecipe(3), "site", 256, 0),
        (RangeSearchRecipe(3), "small_batch", 256, None),
    ],
)
def test_role_and_width_decide(recipe, role, width, rotation):
    assert rotation_of(recipe, role, width) == rotation
