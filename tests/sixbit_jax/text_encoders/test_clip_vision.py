"""CLIP's vision encoder against transformers."""

import jax.numpy as jnp
import pytest

from sixbit_jax.text_encoders.clip_config import CLIPVisionConfig
from sixbit_jax.text_encoders.clip_vision import encode_image
from tests.golden import text_cases
from tests.sixbit_jax.text_encoders.encoders import golden_model, relative_l2


@pytest.mark.parametrize("name", text_cases.names("clip_vision"))
def test_float32_output_equals_transformers(name):
    case = text_cases.load(name)
    output = encode_image(golden_model(case), case.pixels(), jnp.float32)
    assert relative_l2(output, case.output) < 1e-5


def test_the_last_layer_is_not_built():
    model = golden_model(text_cases.load("clip_vision"))
    assert model.layers.mlp.fc1.weight[...].shape[0] == 3


def test_published_encoder_gives_257_rows():
    assert CLIPVisionConfig().num_tokens == 257
    assert CLIPVisionConfig().num_run_layers == 31


def test_a_picture_of_another_size_is_refused():
    model = golden_model(text_cases.load("clip_vision"))
    with pytest.raises(ValueError, match=r"expected \[batch, 3, 28, 28\], found"):
        encode_image(model, jnp.zeros((1, 3, 28, 35)))


def test_config_lists_everything_that_does_not_fit():
    with pytest.raises(ValueError) as error:
        CLIPVisionConfig(image_size=30, num_hidden_layers_to_skip=32)
    assert "image_size: expected a multiple of patch_size 14" in str(error.value)
    assert "num_hidden_layers_to_skip: expected 0 to 31" in str(error.value)
