"""Fast, small video diffusion transformers in JAX."""

from sixbit_jax import recipes
from sixbit_jax.calibration.policy_file import policy_from_file
from sixbit_jax.checkpoint import load, save
from sixbit_jax.checkpoint.pair import load_pair
from sixbit_jax.formats import Int8Array, NVFP4Array, UniformArray
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
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
