"""Encoders with the weights of golden cases, by the converter's own rules."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import clip, llama, t5
from convert.rules import RuleTable
from sixbit_jax.text_encoders.clip import CLIPTextEncoder
from sixbit_jax.text_encoders.clip_vision import CLIPVisionEncoder
from sixbit_jax.text_encoders.llama import LlamaEncoder
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder
from tests.golden.prompt_cases import PromptCase
from tests.golden.text_cases import EncoderCase

MODELS = {
    "T5EncoderModel": T5Encoder,
    "UMT5EncoderModel": UMT5Encoder,
    "LlamaModel": LlamaEncoder,
    "CLIPTextModel": CLIPTextEncoder,
    "CLIPVisionModel": CLIPVisionEncoder,
    "CLIPVisionModelWithProjection": CLIPVisionEncoder,
}


def relative_l2(found: Any, expected: Any) -> float:
    """|found - expected| / |expected|, in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def table_of(config: Any, model: Any, keys: Any) -> RuleTable:
    """The converter's rules for a checkpoint."""
    if model is LlamaEncoder:
        return llama.table(config, keys)
    if model is CLIPVisionEncoder:
        return clip.vision_table(config, keys)
    if model is CLIPTextEncoder:
        return clip.text_table(keys)
    return t5.UMT5_TABLE if model is UMT5Encoder else t5.T5_TABLE


def golden_model(case: EncoderCase | PromptCase, **changes: Any) -> Any:
    """The encoder of a case.

    Args:
      case: its configuration and weights.
      **changes: keys of the config of ours that the file has not.
    """
    weights = case.weights()
    kind = MODELS[case.config["architectures"][0]]
    config = kind.config_class.from_dict(case.config | changes)
    table = table_of(config, kind, weights.keys())
    model = kind(config, rngs=nnx.Rngs(0))
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in flat.items():
        name = ".".join(map(str, path))
        stack, _, leaf = name.partition(".")
        if stack in table.stacks:
            layers = range(variable.get_value().shape[0])
            keys = [table.source_of(f"{stack}.{i}.{leaf}")[0] for i in layers]
            value = np.stack([weights[key] for key in keys])
        else:
            value = weights[table.source_of(name)[0]]
        variable.set_value(jnp.asarray(value))
    nnx.update(model, nnx.from_flat_state(flat))
    return model
