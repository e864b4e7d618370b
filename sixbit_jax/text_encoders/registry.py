"""Encoders by the class name that transformers writes into config.json."""

from collections.abc import Mapping
from typing import Any

from sixbit_jax.text_encoders.clip import CLIPTextEncoder
from sixbit_jax.text_encoders.clip_vision import CLIPVisionEncoder
from sixbit_jax.text_encoders.llama import LlamaEncoder
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder

_MODELS = {
    model.class_name: model
    for model in (
        T5Encoder,
        UMT5Encoder,
        LlamaEncoder,
        CLIPTextEncoder,
        CLIPVisionEncoder,
    )
}
# Classes that hold one of the above with more around it.
_WRAPPED = {
    "CLIPTextModelWithProjection": "CLIPTextModel",
    "CLIPVisionModelWithProjection": "CLIPVisionModel",
    "LlamaForCausalLM": "LlamaModel",
    "LlavaForConditionalGeneration": "LlamaModel",
}


def class_of(config: Mapping[str, Any]) -> str:
    """The class name of the port of a `config.json`.

    Args:
      config: with transformers' `architectures`, or with `_class_name` (ours).

    Raises:
      ValueError: if it names no class or one without a port; lists those that have.
    """
    given = config.get("_class_name")
    if given is None:
        names = config.get("architectures") or []
        given = names[0] if len(names) == 1 else names
    known = given if isinstance(given, str) else ""
    name = _WRAPPED.get(known, known)
    if name not in _MODELS:
        wanted = ", ".join(sorted({*_MODELS, *_WRAPPED}))
        raise ValueError(f"architectures: expected one of {wanted}; found {given!r}")
    return name


def get(class_name: str) -> tuple[type, type]:
    """The configuration class and the model class of a transformers class name.

    Raises:
      ValueError: if no port of that class exists; lists those that do.
    """
    model = _MODELS[class_of({"_class_name": class_name})]
    return model.config_class, model
