"""Who decides, at every step, what is computed and how."""

from sixbit_jax.policies.base import (
    BlockGrid,
    Plan,
    Policy,
    PolicyState,
    Stats,
    StepIndex,
    full_precision_plan,
)
from sixbit_jax.policies.baselines import alternate, random_routes
from sixbit_jax.policies.bits import (
    activation_bits,
    attention_density,
    effective_bits,
    route_shares,
    skip_fraction,
)
from sixbit_jax.policies.chain import chain
from sixbit_jax.policies.delta_gbs import delta_gbs
from sixbit_jax.policies.dmpq import dmpq
from sixbit_jax.policies.fixed import fixed
from sixbit_jax.policies.int8_attention import int8_attention
from sixbit_jax.policies.pdr import pdr
from sixbit_jax.policies.predictor import ErrorPredictor
from sixbit_jax.policies.sparse_attention import sparse_attention
from sixbit_jax.policies.step_cache import step_cache, uniform_skips
from sixbit_jax.policies.tdc import tdc

__all__ = [
    "BlockGrid",
    "ErrorPredictor",
    "Plan",
    "Policy",
    "PolicyState",
    "Stats",
    "StepIndex",
    "activation_bits",
    "alternate",
    "attention_density",
    "chain",
    "delta_gbs",
    "dmpq",
    "effective_bits",
    "fixed",
    "full_precision_plan",
    "int8_attention",
    "pdr",
    "random_routes",
    "route_shares",
    "skip_fraction",
    "sparse_attention",
    "step_cache",
    "tdc",
    "uniform_skips",
]
