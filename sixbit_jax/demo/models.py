"""The networks that are trained on the demo's videos, by name and by class."""

from typing import Any

from sixbit_jax.demo.model import COGVIDEOX, DemoModel
from sixbit_jax.demo.wan import WAN

MODELS = {demo.name: demo for demo in (COGVIDEOX, WAN)}


def demo_of(model: Any) -> DemoModel:
    """How a network of this class is trained and sampled.

    Raises:
        ValueError: no network of its class is trained here.
    """
    for demo in MODELS.values():
        if isinstance(model, demo.model_class):
            return demo
    known = ", ".join(demo.model_class.__name__ for demo in MODELS.values())
    raise ValueError(f"model: expected one of {known}, found {type(model).__name__}")
