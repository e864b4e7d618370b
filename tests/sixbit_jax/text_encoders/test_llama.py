"""The Llama text stack against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.llama import LlamaEncoder
from sixbit_jax.text_encoders.llama_config import LlamaConfig
from tests.golden import text_cases
from tests.sixbit_jax.text_encoders.encoders import golden_model, relative_l2

SKIPPED = {"llama": 2, "llama_whole": 0}


@pytest.mark.parametrize("name", text_cases.names("llama"))
def test_float32_output_equals_transformers(name):
    case = text_cases.load(name)
    model = golden_model(case, num_hidden_layers_to_skip=SKIPPED[name])
    output = encode(model, case.ids(), case.mask(), jnp.float32)
    assert relative_l2(output, case.output) < 1e-5


def test_skipped_layers_and_the_final_norm_are_not_built():
    model = golden_model(text_cases.load("llama"))
    assert model.norm is None
    assert model.layers.mlp.up_proj.weight[...].shape[0] == 3


def test_padding_is_not_read():
    case = text_cases.load("llama")
    model, ids, mask = golden_model(case), case.ids(), case.mask()
    changed = np.where(mask, ids, 77)
    found = np.asarray(encode(model, changed, mask, jnp.float32))
    assert relative_l2(found[mask], case.output[mask]) < 1e-5


def test_linears_run_from_nvfp4_weights():
    case = text_cases.load("llama")
    plain = golden_model(case)
    model = quantize(plain, NVFP4Recipe(rotation=16))
    exact = encode(plain, case.ids(), case.mask(), jnp.float32)
    output = encode(model, case.ids(), case.mask(), jnp.float32)
    assert 1e-3 < relative_l2(output, exact) < 0.4


def test_published_text_stack_loads_thirty_of_its_layers():
    config = LlamaConfig.from_dict(
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "text_config": {
                "intermediate_size": 14336,
                "max_position_embeddings": 8192,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "vocab_size": 128320,
                "model_type": "llama",
            },
            "vision_config": {"hidden_size": 1024},
        }
    )
    model = nnx.eval_shape(lambda: LlamaEncoder(config, rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.state(model))
    shapes = {".".join(map(str, path)): v.get_value().shape for path, v in leaves}
    assert shapes["layers.self_attn.k_proj.weight"] == (30, 1024, 4096)
    assert shapes["embed_tokens.weight"] == (128320, 4096)
    assert "norm.weight" not in shapes


def test_config_lists_everything_that_does_not_fit():
    with pytest.raises(ValueError) as error:
        LlamaConfig.from_dict(
            {
                "hidden_act": "gelu",
                "rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0},
                "sliding_window": 4,
            }
        )
    message = str(error.value)
    assert "hidden_act: expected 'silu', found 'gelu'" in message
    assert "rope_scaling: expected None" in message
    assert "sliding_window: not a field of a Llama config" in message
    with pytest.raises(ValueError) as error:
        LlamaConfig(num_key_value_heads=3, num_hidden_layers_to_skip=32)
    assert "num_key_value_heads: expected a divisor of 32, found 3" in str(error.value)
    assert "num_hidden_layers_to_skip: expected 0 to 31" in str(error.value)


def test_config_round_trips():
    config = LlamaConfig.from_dict(text_cases.load("llama").config)
    assert config.rope_theta == 5e5
    assert LlamaConfig.from_dict(config.to_dict()) == config
