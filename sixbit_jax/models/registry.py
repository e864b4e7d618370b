"""Networks by the class name that diffusers writes into config.json."""

from sixbit_jax.models.cogvideox import CogVideoXTransformer

_MODELS = {CogVideoXTransformer.class_name: CogVideoXTransformer}


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
