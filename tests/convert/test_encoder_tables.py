"""The rule tables of the prompt and picture encoders account for every key."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.text_encoders import registry
from tests.golden import text_cases
from tests.sixbit_jax.text_encoders.encoders import MODELS, table_of

NAMES = [name for name in text_cases.names() if name != "llama_whole"]


def tensors(shapes):
    return {
        key: TensorInfo(np.dtype(np.float32), tuple(shape), Path("x"), 0)
        for key, shape in shapes.items()
    }


def assigned(name, shapes):
    """What the table of a case makes of a checkpoint, and the parameters of ours."""
    case = text_cases.load(name)
    kind = MODELS[case.config["architectures"][0]]
    config = kind.config_class.from_dict(case.config)
    table = table_of(config, kind, shapes.keys())
    abstract = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    ours = {}
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        stack, _, rest = ".".join(map(str, path)).partition(".")
        shape = tuple(leaf.get_value().shape)
        if stack in table.stacks:
            ours |= {f"{stack}.{i}.{rest}": shape[1:] for i in range(shape[0])}
        else:
            ours[f"{stack}.{rest}" if rest else stack] = shape
    return table.assign(tensors(shapes), ours), ours, table, kind


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_key_and_every_key_is_used_or_ignored_by_name(name):
    shapes = text_cases.load(name).shapes
    (found, ignored), ours, _, _ = assigned(name, shapes)
    assert found.keys() == ours.keys()
    used = {chosen.key for chosen in found.values()}
    assert len(used) == len(found)
    assert used.isdisjoint(ignored)
    assert used | set(ignored) == shapes.keys()


def prefixed(prefix):
    return lambda key: prefix + key


@pytest.mark.parametrize(
    ("name", "rename", "more"),
    [
        # Files that transformers before release 5 wrote.
        (
            "clip_text",
            prefixed("text_model."),
            {"text_model.embeddings.position_ids": (1, 20)},
        ),
        (
            "clip_vision",
            prefixed("vision_model."),
            {"vision_model.embeddings.position_ids": (1, 17)},
        ),
        ("llama", prefixed("model."), {"lm_head.weight": (101, 48)}),
        (
            "llama",
            prefixed("language_model.model."),
            {
                "language_model.lm_head.weight": (101, 48),
                "vision_tower.vision_model.post_layernorm.weight": (8,),
                "multi_modal_projector.linear_1.bias": (8,),
            },
        ),
        ("llama", prefixed("model.language_model."), {"model.vision_tower.a": (8,)}),
        ("t5", prefixed(""), {"encoder.embed_tokens.weight": (97, 64)}),
    ],
)
def test_other_prefixes_and_known_leftovers_are_accepted(name, rename, more):
    shapes = {rename(k): v for k, v in text_cases.load(name).shapes.items()}
    (found, ignored), ours, _, _ = assigned(name, shapes | more)
    assert found.keys() == ours.keys()
    assert more.keys() <= set(ignored)


def test_layers_that_are_not_run_are_ignored_by_name():
    (_, ignored), _, _, _ = assigned("llama", text_cases.load("llama").shapes)
    assert "norm.weight" in ignored
    assert {key.split(".")[1] for key in ignored if key.startswith("layers.")} == {
        "3",
        "4",
    }


def test_a_missing_and_an_unknown_key_are_named():
    shapes = dict(text_cases.load("umt5").shapes)
    del shapes["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    shapes["decoder.block.0.x"] = (3,)
    with pytest.raises(ConversionError) as error:
        assigned("umt5", shapes)
    assert "encoder.block.1.layer.1.DenseReluDense.wo.weight" in str(error.value)
    assert "decoder.block.0.x" in str(error.value)


@pytest.mark.parametrize("name", text_cases.names())
def test_the_registry_knows_the_class_of_every_config(name):
    config = text_cases.load(name).config
    kind = MODELS[config["architectures"][0]]
    assert registry.get(registry.class_of(config)) == (kind.config_class, kind)


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match=r"expected one of CLIPTextModel.*'BertModel'"):
        registry.class_of({"architectures": ["BertModel"]})
    with pytest.raises(ValueError, match=r"found \[\]"):
        registry.class_of({})
    llava = {"architectures": ["LlavaForConditionalGeneration"]}
    assert registry.class_of(llava) == "LlamaModel"
