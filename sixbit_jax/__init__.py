"""Fast, small video diffusion transformers in JAX.

Importing the package is cheap: each public name is loaded when it is first used.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.fuse import fuse_lora
    from sixbit_jax import recipes
    from sixbit_jax.checkpoint import load, save
    from sixbit_jax.checkpoint.pair import load_pair
    from sixbit_jax.formats import NVFP4Array, UniformArray
    from sixbit_jax.meshes import make_mesh
    from sixbit_jax.models.cogvideox.config import CogVideoXConfig
    from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
    from sixbit_jax.models.wan.config import WanConfig
    from sixbit_jax.models.wan.network import WanTransformer
    from sixbit_jax.pipelines.pipeline import VideoPipeline, load_pipeline
    from sixbit_jax.policies import (
        BlockGrid,
        ErrorPredictor,
        Plan,
        Policy,
        Stats,
        chain,
        delta_gbs,
        dmpq,
        fixed,
        int8_attention,
        pdr,
        sparse_attention,
        step_cache,
        tdc,
    )
    from sixbit_jax.policies.policy_file import policy_from_file
    from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
    from sixbit_jax.quantizers.uniform import UniformRecipe
    from sixbit_jax.routes import Route
    from sixbit_jax.sampling.api import Interrupted, prepare, sample
    from sixbit_jax.sampling.loop import run_program
    from sixbit_jax.sampling.noise import initial_noise, step_noise
    from sixbit_jax.sampling.options import (
        Conditions,
        Execution,
        Guidance,
        Noise,
        Prompt,
    )
    from sixbit_jax.sampling.pair import LowNoise
    from sixbit_jax.sampling.schedulers import (
        CogVideoXDDIM,
        CogVideoXDPM,
        FlowMatchEuler,
        FlowMatchLCM,
        UniPC,
        few_step,
    )
    from sixbit_jax.sampling.schedulers import from_config as scheduler_from_config
    from sixbit_jax.sampling.trace import SampleResult, Trace

__all__ = [
    "BlockGrid",
    "CogVideoXConfig",
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "CogVideoXTransformer",
    "Conditions",
    "ErrorPredictor",
    "Execution",
    "FlowMatchEuler",
    "FlowMatchLCM",
    "Guidance",
    "Interrupted",
    "LowNoise",
    "NVFP4Array",
    "NVFP4Recipe",
    "Noise",
    "Plan",
    "Policy",
    "Prompt",
    "Route",
    "SampleResult",
    "Stats",
    "Trace",
    "UniPC",
    "UniformArray",
    "UniformRecipe",
    "VideoPipeline",
    "WanConfig",
    "WanTransformer",
    "chain",
    "delta_gbs",
    "dmpq",
    "few_step",
    "fixed",
    "fuse_lora",
    "initial_noise",
    "int8_attention",
    "load",
    "load_pair",
    "load_pipeline",
    "make_mesh",
    "pdr",
    "policy_from_file",
    "prepare",
    "quantize",
    "recipes",
    "run_program",
    "sample",
    "save",
    "scheduler_from_config",
    "sparse_attention",
    "step_cache",
    "step_noise",
    "tdc",
]

# The module of each name, as the imports above say it to type checkers.
_MODULES = {
    "checkpoint": ("load", "save"),
    "checkpoint.pair": ("load_pair",),
    "formats": ("NVFP4Array", "UniformArray"),
    "meshes": ("make_mesh",),
    "models.cogvideox.config": ("CogVideoXConfig",),
    "models.cogvideox.network": ("CogVideoXTransformer",),
    "models.wan.config": ("WanConfig",),
    "models.wan.network": ("WanTransformer",),
    "policies": (
        "BlockGrid",
        "ErrorPredictor",
        "Plan",
        "Policy",
        "Stats",
        "chain",
        "delta_gbs",
        "dmpq",
        "fixed",
        "int8_attention",
        "pdr",
        "sparse_attention",
        "step_cache",
        "tdc",
    ),
    "pipelines.pipeline": ("VideoPipeline", "load_pipeline"),
    "policies.policy_file": ("policy_from_file",),
    "quantizers.nvfp4": ("NVFP4Recipe", "quantize"),
    "quantizers.uniform": ("UniformRecipe",),
    "routes": ("Route",),
    "sampling.api": ("Interrupted", "prepare", "sample"),
    "sampling.loop": ("run_program",),
    "sampling.noise": ("initial_noise", "step_noise"),
    "sampling.options": ("Conditions", "Execution", "Guidance", "Noise", "Prompt"),
    "sampling.pair": ("LowNoise",),
    "sampling.schedulers": (
        "CogVideoXDDIM",
        "CogVideoXDPM",
        "FlowMatchEuler",
        "FlowMatchLCM",
        "UniPC",
        "few_step",
    ),
    "sampling.trace": ("SampleResult", "Trace"),
}
_PLACES = {
    name: (module, name) for module, names in _MODULES.items() for name in names
} | {"scheduler_from_config": ("sampling.schedulers", "from_config")}
# Reads PyTorch's files, and so lives with the converter; no module here imports it.
_OF_CONVERTER = ("fuse_lora",)


def __getattr__(name: str) -> Any:
    """Loads a public name, or a module of the package, on first use (PEP 562)."""
    if name in _PLACES:
        module, attribute = _PLACES[name]
        value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    elif name in _OF_CONVERTER:
        value = getattr(importlib.import_module("convert"), name)
    elif name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
