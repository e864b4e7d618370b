"""Networks by the class name that diffusers writes into config.json."""

from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.wan.network import WanTransformer

_MODELS = {model.class_name: model for model in (CogVideoXTransformer, WanTransformer)}


def get(class_name: str) -> tuple[type, type]:
    """The configuration class and the model class of a diffusers class name.

    Raises:
      ValueError: if no port of that class exists; lists those that do.
    """
    if class_name not in _MODELS:
        known = ", ".join(sorted(_MODELS))
        raise ValueError(f"model class: expected one of {known}; found {class_name!r}")
    model = _MODELS[class_name]
    return model.config_class, model
