"""Fast, small video diffusion transformers in JAX."""

from sixbit_jax import recipes
from sixbit_jax.checkpoint import load, save
from sixbit_jax.checkpoint.pair import load_pair
from sixbit_jax.formats import Int8Array, NVFP4Array, UniformArray
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.network import WanTransformer
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
    UniPC,
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
    "Guidance",
    "Int8Array",
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
    "WanConfig",
    "WanTransformer",
    "chain",
    "delta_gbs",
    "dmpq",
    "fixed",
    "initial_noise",
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
    "scheduler_from_config",
    "step_cache",
    "step_noise",
    "tdc",
]
