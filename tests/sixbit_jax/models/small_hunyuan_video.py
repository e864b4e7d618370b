"""Small HunyuanVideo models for tests, prompts, and weights by diffusers' names."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.network import HunyuanVideoTransformer

_RENAMES = {".to_out": ".to_out.0", ".up": ".net.0.proj", ".down": ".net.2"}


def small_config(**changes) -> HunyuanVideoConfig:
    """Two dual blocks and three single ones, of two heads."""
    values = {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 32,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (16, 24, 24),
    }
    return HunyuanVideoConfig(**(values | changes))


def small_model(seed: int = 0, **changes) -> HunyuanVideoTransformer:
    """A model with random weights in which every parameter matters."""
    model = HunyuanVideoTransformer(small_config(**changes), rngs=nnx.Rngs(seed))
    leaves, tree = jax.tree.flatten(nnx.state(model))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    nnx.update(model, jax.tree.unflatten(tree, leaves))
    return model


class SmallPrompt(NamedTuple):
    """What `sixbit_jax.Prompt` is made of."""

    embeds: jax.Array
    mask: jax.Array
    pooled: jax.Array


def small_prompt(lengths=(5,), tokens: int = 8, seed: int = 1) -> SmallPrompt:
    """Prompts of so many tokens each, and padding that is no zeros."""
    keys = jax.random.split(jax.random.key(seed), 2)
    config = small_config()
    shape = (len(lengths), tokens, config.text_embed_dim)
    return SmallPrompt(
        jax.random.normal(keys[0], shape),
        jnp.arange(tokens) < jnp.array(lengths)[:, None],
        jax.random.normal(keys[1], (len(lengths), config.pooled_projection_dim)),
    )


def with_diffusers_weights(
    model: HunyuanVideoTransformer, weights: dict[str, np.ndarray]
) -> HunyuanVideoTransformer:
    """Fills a model from a diffusers state dict; every key must be used."""
    weights = dict(weights)
    counts = {stack.name: stack.num_blocks for stack in model.stacks}
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in flat.items():
        name = ".".join(map(str, path))
        for ours, theirs in _RENAMES.items():
            name = name.replace(ours + ".", theirs + ".")
        head, _, rest = name.partition(".")
        if head in counts:
            layers = range(counts[head])
            value = np.stack([weights.pop(f"{head}.{i}.{rest}") for i in layers])
        else:
            value = weights.pop(name)
        variable.set_value(jnp.asarray(value))
    assert not weights, f"unused keys {sorted(weights)}"
    nnx.update(model, nnx.from_flat_state(flat))
    return model
