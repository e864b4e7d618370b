"""Networks by the class name that diffusers writes into config.json."""

import importlib

from sixbit_jax.reading.messages import brief

ROWS = {
    "CogVideoXTransformer3DModel": (
        "sixbit_jax.models.cogvideox.network",
        "CogVideoXTransformer",
    ),
    "HunyuanVideoTransformer3DModel": (
        "sixbit_jax.models.hunyuan_video.network",
        "HunyuanVideoTransformer",
    ),
    "WanTransformer3DModel": ("sixbit_jax.models.wan.network", "WanTransformer"),
}
"""Class name of diffusers -> our module and class; imported on first use."""


def get(class_name: str) -> tuple[type, type]:
    """The configuration class and the model class of a diffusers class name.

    Raises:
      ValueError: if no port of that class exists; lists those that do.
    """
    if not isinstance(class_name, str) or class_name not in ROWS:
        known, found = ", ".join(sorted(ROWS)), brief(class_name)
        raise ValueError(f"model class: expected one of {known}; found {found}")
    module, name = ROWS[class_name]
    model = vars(importlib.import_module(module))[name]
    return model.config_class, model


__all__ = ["ROWS", "get"]
