"""Configs as the published folders write them, keys of old releases included."""

import pytest

from sixbit_jax.text_encoders import registry

# Defaults that transformers 4 wrote out in full for configs inside a composite one.
_GENERATION = {
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "top_k": 50,
    "top_p": 1.0,
    "id2label": {"0": "LABEL_0"},
    "output_attentions": False,
    "return_dict": True,
    "torchscript": False,
    "use_bfloat16": False,
}
T5 = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 32128,
}
UMT5 = T5 | {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "scalable_attention": True,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 256384,
}
LLAMA = {
    "architectures": ["LlamaModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 128257,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 128320,
}
CLIP = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
VISION = {
    "architectures": ["CLIPVisionModel"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
}


@pytest.mark.parametrize("values", [T5, UMT5, LLAMA, CLIP, VISION])
@pytest.mark.parametrize("more", [{}, _GENERATION])
def test_published_configs_are_read_and_every_size_is_kept(values, more):
    config_class, model_class = registry.get(registry.class_of(values))
    config = config_class.from_dict(values | more)
    stored = config.to_dict()
    assert model_class.class_name == values["architectures"][0]
    assert {key: stored[key] for key in stored.keys() & values.keys()} == {
        key: values[key] for key in stored.keys() & values.keys()
    }
    assert config_class.from_dict(stored) == config


def test_sizes_of_the_published_encoders():
    def config(values):
        return registry.get(registry.class_of(values))[0].from_dict(values)

    assert config(T5).embed_dim == config(UMT5).embed_dim == 4096
    assert config(LLAMA).num_run_layers == 30
    assert config(LLAMA).width_of_head == 128
    assert config(CLIP).embed_dim == 768
    assert (config(VISION).num_tokens, config(VISION).embed_dim) == (257, 1280)
