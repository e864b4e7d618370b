"""Networks by the class name that diffusers writes into config.json."""

from sixbit_jax.config_schema import shown
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.wan.network import WanTransformer

_MODELS = {model.class_name: model for model in (CogVideoXTransformer, WanTransformer)}


def get(class_name: str) -> tuple[type, type]:
    """The configuration class and the model class of a diffusers class name.

    Raises:
      ValueError: if no port of that class exists; lists those that do.
    """
    if not isinstance(class_name, str) or class_name not in _MODELS:
        known, found = ", ".join(sorted(_MODELS)), shown(class_name)
        raise ValueError(f"model class: expected one of {known}; found {found}")
    model = _MODELS[class_name]
    return model.config_class, model
