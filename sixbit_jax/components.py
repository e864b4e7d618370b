"""Every kind of component that a pipeline has, by the class name in its config.json."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from sixbit_jax.models.registry import ROWS
from sixbit_jax.reading.messages import brief

Kind = Literal["transformer", "text encoder", "image encoder", "vae"]

_PLACES: dict[str, tuple[Kind, str, str]] = {
    "AutoencoderKLCogVideoX": (
        "vae",
        "sixbit_jax.vae.cogvideox",
        "AutoencoderKLCogVideoX",
    ),
    "AutoencoderKLHunyuanVideo": (
        "vae",
        "sixbit_jax.vae.hunyuan_video",
        "AutoencoderKLHunyuanVideo",
    ),
    "AutoencoderKLWan": ("vae", "sixbit_jax.vae.wan", "AutoencoderKLWan"),
    "T5EncoderModel": ("text encoder", "sixbit_jax.text_encoders.t5", "T5Encoder"),
    "UMT5EncoderModel": ("text encoder", "sixbit_jax.text_encoders.t5", "UMT5Encoder"),
    "LlamaModel": ("text encoder", "sixbit_jax.text_encoders.llama", "LlamaEncoder"),
    "CLIPTextModel": (
        "text encoder",
        "sixbit_jax.text_encoders.clip",
        "CLIPTextEncoder",
    ),
    "CLIPVisionModel": (
        "image encoder",
        "sixbit_jax.text_encoders.clip_vision",
        "CLIPVisionEncoder",
    ),
}
# Classes of transformers that hold one of the above with more around it.
_WRAPPED = {
    "CLIPTextModelWithProjection": "CLIPTextModel",
    "CLIPVisionModelWithProjection": "CLIPVisionModel",
    "LlamaForCausalLM": "LlamaModel",
    "LlavaForConditionalGeneration": "LlamaModel",
}


def _places() -> dict[str, tuple[Kind, str, str]]:
    """All of them; networks are the rows of their own registry."""
    networks: dict[str, tuple[Kind, str, str]] = {
        name: ("transformer", module, model) for name, (module, model) in ROWS.items()
    }
    return networks | _PLACES


def class_name_of(config: Mapping[str, Any]) -> str:
    """The class name that a `config.json` gives: diffusers' or transformers'.

    Raises:
      ValueError: if it gives none, or one without a port; lists those that have one.
    """
    given = config.get("_class_name")
    if given is None:
        names = config.get("architectures")
        given = names[0] if isinstance(names, list) and len(names) == 1 else names
    name = _WRAPPED.get(given, given) if isinstance(given, str) else None
    if name not in _places():
        known = ", ".join(sorted({*_places(), *_WRAPPED}))
        field = "architectures" if "architectures" in config else "_class_name"
        raise ValueError(
            f"config.json {field}: expected one of {known}, found {brief(given)}"
        )
    return name


def kind_of(class_name: str) -> Kind:
    """What a component of this class does in a pipeline."""
    return _place(class_name)[0]


def get(class_name: str) -> tuple[type, type]:
    """The configuration class and the model class of a class name.

    Raises:
      ValueError: if no port of that class exists; lists those that do.
    """
    _, module, name = _place(class_name)
    model = vars(importlib.import_module(module))[name]
    return model.config_class, model


def _place(class_name: str) -> tuple[Kind, str, str]:
    places = _places()
    if not isinstance(class_name, str) or class_name not in places:
        known, found = ", ".join(sorted(places)), brief(class_name)
        raise ValueError(f"model class: expected one of {known}; found {found}")
    return places[class_name]
