"""CLIP's vision encoder (transformers `CLIPVisionModel`; Wan 2.1 I2V reads by it)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.nn.linear import matmul
from sixbit_jax.nn.norms import LayerNorm
from sixbit_jax.text_encoders import clip_block
from sixbit_jax.text_encoders.clip_block import CLIPBlock
from sixbit_jax.text_encoders.clip_config import CLIPVisionConfig
from sixbit_jax.text_encoders.layers import Embedding, run_stack, stacked


class ImagePatches(nnx.Module):
    """Non-overlapping patches times a matrix, stored as the convolution that it is."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        size = config.patch_size
        shape = (config.hidden_size, config.num_channels, size, size)
        self.weight = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

    def __call__(
        self, pixels: Float[Array, "batch C H W"]
    ) -> Float[Array, "batch patches D"]:
        """One row per patch, row by row of the picture, in the dtype of the pixels."""
        weight = self.weight[...]
        dim, channels, size, _ = weight.shape
        batch, _, height, width = pixels.shape
        x = pixels.reshape(
            batch, channels, height // size, size, width // size, size
        ).transpose(0, 2, 4, 1, 3, 5)
        x = x.reshape(batch, (height // size) * (width // size), -1)
        return matmul(x, weight.reshape(dim, -1), None)


class CLIPVisionEncoder(nnx.Module):
    """Class token and patches, and the layers up to the hidden state that is read."""

    class_name: ClassVar[str] = "CLIPVisionModel"
    config_class = CLIPVisionConfig
    stacks = ("layers",)

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.hidden_size
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (dim,)))
        self.patch_embedding = ImagePatches(config, rngs=rngs)
        self.position_embedding = Embedding(config.num_tokens, dim, rngs=rngs)
        self.pre_layrnorm = LayerNorm(dim, eps=config.layer_norm_eps)
        self.layers = stacked(
            lambda rngs: CLIPBlock(config, rngs=rngs), config.num_run_layers, rngs
        )

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter of this dotted path may be quantized."""
        return clip_block.weight_role(name)

    def __call__(
        self,
        pixels: Float[Array, "batch C H W"],
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch T D"]:
        """transformers' `hidden_states[-(num_hidden_layers_to_skip + 1)]`, in `dtype`.

        Args:
          pixels: normalised picture (`preprocess`), `image_size` square.
          dtype: what the linears compute in. The residual stream is float32.
          kernels: whether a GPU kernel may expand stored weights.

        Raises:
          ValueError: for a picture of another size.
        """
        config = self.config
        wanted = (config.num_channels, config.image_size, config.image_size)
        if pixels.shape[1:] != wanted:
            raise ValueError(
                f"pixels: expected [batch, {', '.join(map(str, wanted))}], found "
                f"{list(pixels.shape)}"
            )
        patches = self.patch_embedding(pixels.astype(dtype)).astype(jnp.float32)
        first = self.class_embedding[...].astype(jnp.float32)
        first = jnp.broadcast_to(first, (patches.shape[0], 1, first.shape[-1]))
        x = jnp.concatenate([first, patches], axis=1)
        x = x + self.position_embedding(jnp.arange(config.num_tokens))
        x = run_stack(
            self.layers,
            self.pre_layrnorm(x),
            lambda block, x: block(x, dtype=dtype, kernels=kernels),
        )
        return x.astype(dtype)


def encode_image(
    model: CLIPVisionEncoder,
    pixels: Float[Array, "batch C H W"],
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
    *,
    kernels: bool = False,
) -> Float[Array, "batch T D"]:
    """Pictures -> the rows that cross-attention reads; a pure function to be jitted.

    Args:
      model: the encoder.
      pixels: normalised pictures (`preprocess`), float32.
      dtype: what linears compute in, and of the result.
      kernels: whether a GPU kernel may expand stored weights.
    """
    dtype = jnp.dtype(dtype)
    precision = "highest" if dtype == jnp.float32 else None
    with jax.default_matmul_precision(precision):
        return model(pixels, dtype=dtype, kernels=kernels)
