"""CLIP's text encoder (transformers `CLIPTextModel`; HunyuanVideo's second one)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.nn.norms import LayerNorm
from sixbit_jax.text_encoders import clip_block
from sixbit_jax.text_encoders.clip_block import CLIPBlock
from sixbit_jax.text_encoders.clip_config import CLIPTextConfig
from sixbit_jax.text_encoders.layers import (
    Embedding,
    run_stack,
    stacked,
    visible_keys,
)

_OLD_EOS = 2


class CLIPTextEncoder(nnx.Module):
    """Token and position embeddings, causal layers, and the final norm."""

    class_name: ClassVar[str] = "CLIPTextModel"
    config_class = CLIPTextConfig
    stacks = ("layers",)

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.hidden_size
        self.token_embedding = Embedding(config.vocab_size, dim, rngs=rngs)
        self.position_embedding = Embedding(
            config.max_position_embeddings, dim, rngs=rngs
        )
        self.layers = stacked(
            lambda rngs: CLIPBlock(config, rngs=rngs), config.num_run_layers, rngs
        )
        self.final_layer_norm = LayerNorm(dim, eps=config.layer_norm_eps)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter of this dotted path may be quantized."""
        return clip_block.weight_role(name)

    def __call__(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch T D"]:
        """The last hidden state after the final norm, in `dtype`.

        Args:
          ids: token ids, at most `max_position_embeddings` of them.
          mask: true (or 1) for tokens, false for padding that no token may read; None
            (what HunyuanVideo passes) is causal attention alone.
          dtype: what the linears compute in. The residual stream is float32.
          kernels: whether a GPU kernel may expand stored weights.

        Raises:
          ValueError: for more tokens than positions.
        """
        config, length = self.config, ids.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"ids: expected at most {config.max_position_embeddings} tokens, found "
                f"{length}"
            )
        visible = visible_keys(mask, length, causal=True)
        x = self.token_embedding(ids) + self.position_embedding(jnp.arange(length))
        x = run_stack(
            self.layers,
            x,
            lambda block, x: block(x, visible, dtype=dtype, kernels=kernels),
        )
        return self.final_layer_norm(x).astype(dtype)

    def encode(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch D"]:
        """The pooled embedding: the row of the first end-of-text token."""
        y = self(ids, mask, dtype=dtype, kernels=kernels)
        eos = self.config.eos_token_id
        rank = ids if eos == _OLD_EOS else ids == eos
        return y[jnp.arange(ids.shape[0]), jnp.argmax(rank, axis=-1)]
