"""Wan autoencoders with the weights of golden cases, read by the rule table."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.vae_wan import TABLE
from sixbit_jax.vae.wan import AutoencoderKLWan
from sixbit_jax.vae.wan_config import WanVAEConfig
from tests.golden.vae_wan_cases import VAECase


def flat(model: nnx.Module) -> dict[str, nnx.Variable]:
    """All parameters by dotted path."""
    state = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): leaf for path, leaf in state}


def abstract(config: WanVAEConfig) -> AutoencoderKLWan:
    """An autoencoder whose parameters are shapes only."""
    return nnx.eval_shape(lambda: AutoencoderKLWan(config, rngs=nnx.Rngs(0)))


def model_of(case: VAECase) -> AutoencoderKLWan:
    """The autoencoder of a golden case."""
    model = abstract(WanVAEConfig.from_dict(case.config))
    graph, state = nnx.split(model)
    weights = case.weights()
    leaves = {}
    for path, leaf in nnx.to_flat_state(state):
        key, rule = TABLE.source_of(".".join(map(str, path)))
        leaves[path] = leaf.replace(jnp.asarray(rule.transform.forward(weights[key])))
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
