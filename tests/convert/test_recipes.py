"""`convert` and `quantize` store the same weights, whatever the recipe and network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.choices import WEIGHTS
from convert.conversion import convert
from sixbit_jax import NVFP4Recipe, UniformRecipe, load, quantize
from sixbit_jax.checkpoint.header import read_header
from sixbit_jax.formats import StoredWeight
from sixbit_jax.methods.mpq_dm.weight_recipe import ResidualRecipe
from sixbit_jax.methods.q_vdit.tune import RangeSearchRecipe
from sixbit_jax.methods.weights import WEIGHT_RECIPES, weight_recipe
from tests.convert.checkpoints import write_golden
from tests.golden import wan_cases
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

RECIPES = {
    "nvfp4": NVFP4Recipe(),
    "nvfp4, refined": NVFP4Recipe(refine=True, rotation=64, small_batch=False),
    "uniform": UniformRecipe(4),
    "uniform, refined": UniformRecipe(3, grid="bgr", rotation=0),
    "range search": RangeSearchRecipe(4),
    "residual, rotated": ResidualRecipe(2, rotation=128),
}
SLOW = ("uniform, refined", "residual, rotated")


def marked(names, slow):
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in slow else name
        for name in names
    ]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A checkpoint and the network of it, by family."""
    folder = tmp_path_factory.mktemp("sources")
    found = {}
    made = {
        "cogvideox": write_tiny_checkpoint(folder / "cogvideox", num_attention_heads=1),
        "wan": write_golden(folder / "wan", wan_cases.load(wan_cases.names()[0])),
    }
    for name, source in made.items():
        convert(source, folder / f"{name}-plain")
        found[name] = source, load(folder / f"{name}-plain", dtype=jnp.float32)[0]
    return found


def parameters(model):
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def described(leaf):
    return tuple(leaf.shape), str(leaf.dtype)


def assert_same(model, expected):
    found, wanted = parameters(model), parameters(expected)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        other = wanted[name]
        assert type(value) is type(other), name
        kind = getattr(value, "format_name", None), getattr(value, "rotation", None)
        assert kind == (
            getattr(other, "format_name", None),
            getattr(other, "rotation", None),
        ), name
        one, two = ([described(x) for x in jax.tree.leaves(w)] for w in (value, other))
        assert one == two, name
        if not isinstance(value, StoredWeight):
            np.testing.assert_array_equal(value, other, err_msg=name)
            continue
        # One compiles for a layer and one for all: sums round otherwise, and a value
        # in the middle of two codes takes the other.
        one, two = value.dequantize(), other.dequantize()
        other_codes = np.abs(one - two) > 1e-5 * np.abs(two).max()
        assert other_codes.mean() <= 1e-4, name


@pytest.mark.parametrize("recipe", marked(RECIPES, SLOW))
@pytest.mark.parametrize("family", ["cogvideox", "wan"])
def test_a_recipe_stores_the_same_on_disk_and_in_memory(
    sources, tmp_path, family, recipe
):
    source, model = sources[family]
    convert(source, tmp_path / "out", weights=RECIPES[recipe])
    found, _ = load(tmp_path / "out", dtype=jnp.float32)
    assert_same(found, quantize(model, RECIPES[recipe]))


@pytest.mark.parametrize("name", ["nvfp4", "uniform4"])
def test_a_name_is_the_recipe_with_its_defaults(sources, tmp_path, name):
    source, model = sources["cogvideox"]
    convert(source, tmp_path / "out", weights=name)
    found, _ = load(tmp_path / "out", dtype=jnp.float32)
    recipe = {"nvfp4": NVFP4Recipe(), "uniform4": UniformRecipe()}[name]
    assert WEIGHT_RECIPES[name] == recipe
    assert_same(found, quantize(model, recipe))


def test_names_are_those_of_the_command_line():
    assert ("keep", *WEIGHT_RECIPES) == WEIGHTS
    assert all(recipe.format_name == name for name, recipe in WEIGHT_RECIPES.items())
    assert weight_recipe("uniform4", refine=True) == UniformRecipe(4, grid="bgr")
    assert WEIGHT_RECIPES["residual3"] == ResidualRecipe()
    assert weight_recipe("residual2", rotation=128).rotation == 128


def test_weights_that_the_rotation_does_not_divide_are_named(sources, tmp_path):
    source, _ = sources["cogvideox"]
    report = convert(source, tmp_path / "out", weights=NVFP4Recipe())
    # One head of 64: only the feed-forward network is wide enough.
    assert "transformer_blocks.attn1.to_q.weight" in report.unrotated
    assert "transformer_blocks.ff.down.weight" not in report.unrotated
    assert "stored without rotation" in str(report)
    noted = read_header(tmp_path / "out").quantization
    assert tuple(noted["unrotated"]) == report.unrotated
    assert (noted["weights"], noted["rotation"]) == ("nvfp4", 128)


def test_a_recipe_says_rotation_and_refinement_itself(sources, tmp_path):
    source, _ = sources["cogvideox"]
    for options in ({"rotation": 0}, {"refine": True}):
        with pytest.raises(ValueError, match="expected neither beside a recipe"):
            convert(source, tmp_path / "out", weights=NVFP4Recipe(), **options)
    assert not (tmp_path / "out").exists()
