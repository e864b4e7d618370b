"""Small Wan models for tests, and weights by diffusers' names."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.network import WanTransformer

_RENAMES = {".to_out": ".to_out.0", ".up": ".net.0.proj", ".down": ".net.2"}


def small_config(**changes) -> WanConfig:
    """Three layers of two heads."""
    values = {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 256,
        "num_layers": 3,
    }
    return WanConfig(**(values | changes))


def small_model(seed: int = 0, **changes) -> WanTransformer:
    """A model with random weights in which every parameter matters."""
    model = WanTransformer(small_config(**changes), rngs=nnx.Rngs(seed))
    leaves, tree = jax.tree.flatten(nnx.state(model))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    nnx.update(model, jax.tree.unflatten(tree, leaves))
    return model


def with_diffusers_weights(
    model: WanTransformer, weights: dict[str, np.ndarray]
) -> WanTransformer:
    """Fills a model from a diffusers state dict; every key must be used."""
    weights = dict(weights)
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in flat.items():
        name = ".".join(map(str, path))
        for ours, theirs in _RENAMES.items():
            name = name.replace(ours, theirs)
        head, _, rest = name.partition(".")
        if head == "blocks":
            layers = range(model.num_blocks)
            value = np.stack([weights.pop(f"{head}.{i}.{rest}") for i in layers])
        else:
            value = weights.pop(name)
        variable.set_value(jnp.asarray(value))
    assert not weights, f"unused keys {sorted(weights)}"
    nnx.update(model, nnx.from_flat_state(flat))
    return model
