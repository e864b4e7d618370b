"""Small autoencoders with diffusers' weights, through the converter's rule tables."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.rules import RuleTable
from tests.golden.vae_cases import VaeCase
from tests.golden.weights import random_weights


def relative_l2(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def joined(chunks: Iterator[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)


def _filled(network: Any, config: Any, value_of: Callable) -> Any:
    """An autoencoder whose parameters are `value_of(path, shape)`."""
    abstract = nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    flat = {
        path: leaf.replace(
            jnp.asarray(value_of(".".join(map(str, path)), leaf.get_value().shape))
        )
        for path, leaf in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(flat))


def random_vae(network: Any, config: Any) -> Any:
    """An autoencoder with weights at the scale of a working one."""
    return _filled(
        network, config, lambda path, shape: random_weights({path: shape})[path]
    )


def golden_vae(case: VaeCase, network: Any, table: RuleTable) -> Any:
    """The port of a case's autoencoder; every key must be used."""
    weights = case.weights()

    def value_of(path: str, shape: tuple[int, ...]) -> np.ndarray:
        key, _ = table.source_of(path)
        value = weights.pop(key)
        assert value.shape == shape, key
        return value

    vae = _filled(network, network.config_class.from_dict(case.config), value_of)
    assert not weights, f"unused keys {sorted(weights)}"
    return vae
