"""CLIP's text encoder against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.text_encoders.clip_config import CLIPTextConfig
from sixbit_jax.text_encoders.encode import encode
from tests.golden import text_cases
from tests.sixbit_jax.text_encoders.encoders import golden_model, relative_l2


@pytest.mark.parametrize("name", text_cases.names("clip_text"))
def test_float32_output_equals_transformers(name):
    case = text_cases.load(name)
    model = golden_model(case)
    assert relative_l2(model(case.ids()), case.output) < 1e-5


@pytest.mark.parametrize("name", text_cases.names("clip_text"))
def test_pooled_embedding_is_the_row_of_the_first_end_token(name):
    case = text_cases.load(name)
    pooled = encode(golden_model(case), case.ids(), None, jnp.float32)
    assert relative_l2(pooled, case.pooled) < 1e-5
    rows = np.array(case.lengths) - 1
    expected = case.output[np.arange(case.batch), rows]
    assert relative_l2(pooled, expected) < 1e-5


def test_more_tokens_than_positions_are_refused():
    model = golden_model(text_cases.load("clip_text"))
    with pytest.raises(ValueError, match="expected at most 20 tokens, found 21"):
        model(jnp.zeros((1, 21), jnp.int32))


def test_config_lists_everything_that_does_not_fit():
    with pytest.raises(ValueError) as error:
        CLIPTextConfig(hidden_size=10, hidden_act="relu")
    assert "hidden_size: expected a multiple of 12 heads" in str(error.value)
    assert "hidden_act: expected one of 'quick_gelu', 'gelu'" in str(error.value)
    with pytest.raises(ValueError, match="layers: not a field of a CLIP text config"):
        CLIPTextConfig.from_dict({"layers": 3})


def test_config_round_trips():
    config = CLIPTextConfig.from_dict(text_cases.load("clip_text").config)
    assert CLIPTextConfig.from_dict(config.to_dict()) == config
