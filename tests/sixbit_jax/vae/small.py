"""Small autoencoders with diffusers' weights, through the converter's rule tables."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.rules import RuleTable
from tests.golden.vae_cases import VaeCase


def relative_l2(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def joined(chunks: Iterator[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)


def golden_vae(case: VaeCase, network: Any, table: RuleTable) -> Any:
    """The port of a case's autoencoder; every key must be used."""
    config = network.config_class.from_dict(case.config)
    vae = network(config, rngs=nnx.Rngs(0))
    weights = case.weights()
    flat = dict(nnx.to_flat_state(nnx.state(vae)))
    for path, variable in flat.items():
        key, _ = table.source_of(".".join(map(str, path)))
        value = weights.pop(key)
        assert value.shape == variable.get_value().shape, key
        variable.set_value(jnp.asarray(value))
    assert not weights, f"unused keys {sorted(weights)}"
    nnx.update(vae, nnx.from_flat_state(flat))
    return vae
