"""Fast, small video diffusion transformers in JAX.

Importing the package is cheap: each public name is loaded when it is first used.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sixbit_jax import recipes
    from sixbit_jax.calibration.policy_file import policy_from_file
    from sixbit_jax.checkpoint import load, save
    from sixbit_jax.checkpoint.pair import load_pair
    from sixbit_jax.formats import Int8Array, NVFP4Array, UniformArray
    from sixbit_jax.models.cogvideox import CogVideoXTransformer
    from sixbit_jax.models.cogvideox_config import CogVideoXConfig
    from sixbit_jax.policies import (
        Policy,
        chain,
        delta_gbs,
        dmpq,
        fixed,
        int8_attention,
        pdr,
        step_cache,
        tdc,
    )
    from sixbit_jax.quantizers.rtn import NVFP4Recipe, quantize
    from sixbit_jax.quantizers.uniform import UniformRecipe
    from sixbit_jax.routes import Route
    from sixbit_jax.sampling.api import prepare, sample
    from sixbit_jax.sampling.loop import run_program
    from sixbit_jax.sampling.pair import LowNoise
    from sixbit_jax.sampling.schedulers import CogVideoXDDIM, CogVideoXDPM
    from sixbit_jax.sampling.trace import SampleResult, Trace

__all__ = [
    "CogVideoXConfig",
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "CogVideoXTransformer",
    "Int8Array",
    "LowNoise",
    "NVFP4Array",
    "NVFP4Recipe",
    "Policy",
    "Route",
    "SampleResult",
    "Trace",
    "UniformArray",
    "UniformRecipe",
    "chain",
    "delta_gbs",
    "dmpq",
    "fixed",
    "int8_attention",
    "load",
    "load_pair",
    "pdr",
    "policy_from_file",
    "prepare",
    "quantize",
    "recipes",
    "run_program",
    "sample",
    "save",
    "step_cache",
    "tdc",
]

# The module of each name, as the imports above say it to type checkers.
_MODULES = {
    "calibration.policy_file": ("policy_from_file",),
    "checkpoint": ("load", "save"),
    "checkpoint.pair": ("load_pair",),
    "formats": ("Int8Array", "NVFP4Array", "UniformArray"),
    "models.cogvideox": ("CogVideoXTransformer",),
    "models.cogvideox_config": ("CogVideoXConfig",),
    "policies": (
        "Policy",
        "chain",
        "delta_gbs",
        "dmpq",
        "fixed",
        "int8_attention",
        "pdr",
        "step_cache",
        "tdc",
    ),
    "quantizers.rtn": ("NVFP4Recipe", "quantize"),
    "quantizers.uniform": ("UniformRecipe",),
    "routes": ("Route",),
    "sampling.api": ("prepare", "sample"),
    "sampling.loop": ("run_program",),
    "sampling.pair": ("LowNoise",),
    "sampling.schedulers": ("CogVideoXDDIM", "CogVideoXDPM"),
    "sampling.trace": ("SampleResult", "Trace"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name, or a module of the package, on first use (PEP 562)."""
    if name in _PLACES:
        value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    elif name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
