"""Recipes compose weights, policies and options that exist without them."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sixbit_jax import cli, quantize, recipes
from sixbit_jax.calibration import PolicyFile, load_policy, save_policy
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.formats import NVFP4Array, StoredWeight, UniformArray
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.routes import Route
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint
from tests.sixbit_jax.models.small import small_model

CAPTION = "a red circle moves left on a blue background"


def stored(model) -> list[StoredWeight]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    values = [leaf.get_value() for _, leaf in flat]
    return [value for value in values if isinstance(value, StoredWeight)]


def test_dvd_quant_quantizes_with_refined_grids():
    model = small_model()
    found = stored(recipes.dvd_quant(rotation=16).quantize(model))
    expected = stored(quantize(model, UniformRecipe(4, rotation=16, grid="bgr")))
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left.codes, right.codes)
        np.testing.assert_array_equal(left.scales, right.scales)


def test_policies_have_the_routes_of_their_method():
    recipe = recipes.dvd_quant()
    assert recipe.policy(None).routes == (Route.ARQ4, Route.ARQ8) == recipe.routes
    assert recipe.policy(None).skips is False
    assert recipe.policy(None, step_threshold=0.1).skips is True
    channel = recipes.dvd_quant(per_channel=True)
    assert channel.policy(None).routes == (Route.ARQ4_CHANNEL, Route.ARQ8_CHANNEL)
    assert recipes.sixbit_diffusion().routes == (Route.NVFP4, Route.INT8)
    assert recipe.sampling() == {
        "attention": None,
        "cache_format": "bf16",
        "arq_block": 128,
    }


def test_names_and_data_are_checked():
    assert [recipes.recipe_of(name).name for name in recipes.RECIPES] == [
        *recipes.RECIPES
    ]
    with pytest.raises(ValueError, match=r"expected one of .*dvd-quant.* found other"):
        recipes.recipe_of("other")
    with pytest.raises(TypeError, match="dvd-quant: expected no data, found images"):
        recipes.dvd_quant().quantize(None, images=1)


def test_a_policy_file_holds_delta_and_its_routes(tmp_path):
    model = small_model()
    made = PolicyFile.for_model(model, delta=0.2, low="ARQ4", high="ARQ8", purify=False)
    save_policy(made, tmp_path / "delta.json")
    again = load_policy(tmp_path / "delta.json")
    assert again == made
    assert again.policy().routes == (Route.ARQ4, Route.ARQ8)
    with pytest.raises(ValueError, match=r"found \['ARQ5'\]"):
        PolicyFile.for_model(model, delta=0.2, low="ARQ5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Source, its conversion by recipe, and a prompt."""
    folder = tmp_path_factory.mktemp("recipes")
    source = write_tiny_checkpoint(folder / "source")
    argv = ["convert", str(source), str(folder / "dvd"), "--recipe", "dvd-quant"]
    assert cli.main(argv) == 0
    embeds, negative = encode_captions([CAPTION, ""])
    save_file(
        {"prompt_embeds": embeds[None], "negative_prompt_embeds": negative[None]},
        folder / "prompt.safetensors",
    )
    return folder


def test_convert_stores_the_recipes_weights(folder):
    header = json.loads((folder / "dvd" / "sixbit.json").read_text())
    block = header["stacks"]["transformer_blocks"]["parameters"]
    assert block["attn1.to_q.weight"]["dtype"] == "uniform4"
    assert block["attn1.to_q.weight"]["rotation"] == 128
    assert block["norm1.linear.weight"]["rotation"] == 0
    assert header["quantization"]["method"] == "grid refinement"


def test_calibrate_and_sample_by_recipe(folder, tmp_path, capsys):
    argv = ["calibrate", f"--model={folder / 'dvd'}", "--recipe=dvd-quant"]
    argv += [f"--out={tmp_path / 'delta.json'}", "--prompts=1", "--steps=8"]
    assert cli.main([*argv, "--bits=6", "--guidance=1", "--quiet"]) == 0
    policy = load_policy(tmp_path / "delta.json")
    assert (policy.low, policy.high) == ("ARQ4", "ARQ8")
    assert policy.calibration["activation_bits"] == pytest.approx(6, abs=0.5)
    argv = ["sample", str(folder / "dvd"), "--recipe=dvd-quant", "--quiet"]
    argv += [f"--prompt-embeds={folder / 'prompt.safetensors'}", "--steps=8"]
    argv += [f"--policy={tmp_path / 'delta.json'}", "--guidance=1"]
    argv += [f"--out={tmp_path / 'latents.safetensors'}"]
    assert cli.main([*argv, f"--trace={tmp_path / 'trace.npz'}"]) == 0
    assert np.isfinite(load_file(tmp_path / "latents.safetensors")["latents"]).all()
    with np.load(tmp_path / "trace.npz") as trace:
        assert set(np.unique(trace["route"])) == {Route.ARQ4, Route.ARQ8}


def test_convert_refuses_options_that_the_recipe_stands_for(folder, capsys):
    argv = ["convert", str(folder / "source"), str(folder / "x"), "--recipe=dvd-quant"]
    for words in (["--refine"], ["--rotation=0"], ["--weights=nvfp4"]):
        assert cli.main([*argv, *words]) == cli.USER_ERROR
        assert "expected no --weights, --rotation" in capsys.readouterr().err
        assert not (folder / "x").exists()


def test_sixbit_diffusion_is_nvfp4():
    found = stored(
        recipes.sixbit_diffusion().quantize(small_model(attention_head_dim=64))
    )
    assert all(isinstance(weight, NVFP4Array) for weight in found)
    assert not any(isinstance(weight, UniformArray) for weight in found)
