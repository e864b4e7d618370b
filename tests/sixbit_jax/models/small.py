"""Small models for tests, and weights by diffusers' names."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer

_RENAMES = {
    "attn1.to_out": "attn1.to_out.0",
    "ff.up": "ff.net.0.proj",
    "ff.down": "ff.net.2",
}


def small_config(**changes) -> CogVideoXConfig:
    """Two layers of two heads on 8x8 latents of three frames."""
    values = {
        "num_attention_heads": 2,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 64,
        "text_embed_dim": 32,
        "num_layers": 3,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 6,
        "use_rotary_positional_embeddings": True,
    }
    return CogVideoXConfig(**(values | changes))


def small_model(seed: int = 0, **changes) -> CogVideoXTransformer:
    """A model with random weights in which every parameter matters."""
    model = CogVideoXTransformer(small_config(**changes), rngs=nnx.Rngs(seed))
    state = nnx.state(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    nnx.update(model, jax.tree.unflatten(tree, leaves))
    return model


def with_diffusers_weights(
    model: CogVideoXTransformer, weights: dict[str, np.ndarray]
) -> CogVideoXTransformer:
    """Fills a model from a diffusers state dict; every key must be used."""
    weights = dict(weights)
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in flat.items():
        name = ".".join(map(str, path))
        for ours, theirs in _RENAMES.items():
            name = name.replace(ours, theirs)
        head, _, rest = name.partition(".")
        if head == "transformer_blocks":
            layers = range(model.num_blocks)
            value = np.stack([weights.pop(f"{head}.{i}.{rest}") for i in layers])
        else:
            value = weights.pop(name)
        variable.set_value(jnp.asarray(value))
    assert not weights, f"unused keys {sorted(weights)}"
    nnx.update(model, nnx.from_flat_state(flat))
    return model
