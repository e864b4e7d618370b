"""The toy network: blocks that mix tokens, then blocks that do not."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.models.blocks import BlockControl, BlockStats, SiteRunner
from sixbit_jax.models.network import (
    NO_EXTRA,
    BlockStack,
    Compression,
    ConditionSpec,
    Defaults,
    DescribedNetwork,
    Description,
    Extra,
    PromptInputs,
    PromptSpec,
)
from sixbit_jax.nn.embeddings import sinusoidal_embedding
from sixbit_jax.nn.fusion import GatedResidual, Gelu
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteOptions
from tests.toy_network.config import ToyConfig

MIXING, CLOSING = ("mix_in", "mix_out"), ("close",)


class Conditioning(NamedTuple):
    """What every block reads: shifts of the tokens, and scales by layer."""

    shift: Float[Array, "rows D"]
    num_text: int
    per_layer: Any

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Where text ends."""
        return (self.num_text,)


def _added(x: Array) -> GatedResidual:
    one = jnp.ones((x.shape[0], x.shape[2]), jnp.float32)
    return GatedResidual(x, one, one, 0)


class MixingBlock(nnx.Module):
    """Reads the mean over all tokens."""

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        self.up = Linear(config.dim, 2 * config.dim, rngs=rngs)
        self.down = Linear(2 * config.dim, config.dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "rows tokens D"],
        conditioning: Conditioning,
        control: BlockControl | None = None,
        options: SiteOptions = SiteOptions(),  # noqa: B008 (frozen)
    ) -> tuple[Float[Array, "rows tokens D"], BlockStats]:
        """Runs the block; `per_layer` is its scale of the prompt's mean."""
        site = SiteRunner(MIXING, control, options)
        mixed = (
            x + site.all_tokens(x).mean(1, keepdims=True) + conditioning.shift[:, None]
        )
        mixed = mixed + conditioning.per_layer[:, None]
        (hidden,) = site("mix_in", mixed, self.up)
        (x,) = site("mix_out", hidden, self.down, front=Gelu(), residual=_added(x))
        return x, site.stats()


class ClosingBlock(nnx.Module):
    """Treats every token alike."""

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        self.linear = Linear(config.dim, config.dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "rows tokens D"],
        conditioning: Conditioning,
        control: BlockControl | None = None,
        options: SiteOptions = SiteOptions(),  # noqa: B008 (frozen)
    ) -> tuple[Float[Array, "rows tokens D"], BlockStats]:
        """Runs the block."""
        site = SiteRunner(CLOSING, control, options)
        (y,) = site("close", x, self.linear, residual=_added(x))
        return y, site.stats()


class ToyTransformer(DescribedNetwork):
    """Two stacks over text tokens, then video tokens."""

    class_name = "ToyTransformer3DModel"
    config_class = ToyConfig
    stack_names = ("mixing_blocks", "closing_blocks")

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.proj_in = Linear(config.channels, config.dim, rngs=rngs)
        self.text_proj = Linear(config.text_dim, config.dim, rngs=rngs)

        def stacked(kind: type, count: int) -> nnx.Module:
            @nnx.split_rngs(splits=count)
            @nnx.vmap
            def make(rngs: nnx.Rngs) -> nnx.Module:
                return kind(config, rngs=rngs)

            return make(rngs)

        self.mixing_blocks = stacked(MixingBlock, config.mixing_layers)
        self.closing_blocks = stacked(ClosingBlock, config.closing_layers)
        self.proj_out = Linear(config.dim, config.channels, rngs=rngs)

    @classmethod
    def describe(cls, config: ToyConfig) -> Description:
        """What follows from a configuration."""
        square = float(config.dim**2)
        return Description(
            stacks=(
                BlockStack(
                    "mixing_blocks",
                    config.mixing_layers,
                    MIXING,
                    (2 * square, 2 * square),
                ),
                BlockStack("closing_blocks", config.closing_layers, CLOSING, (square,)),
            ),
            prediction="flow_prediction",
            conditions=ConditionSpec(
                PromptSpec(config.text_dim, 8), latent_channels=config.channels
            ),
            defaults=Defaults(
                scheduler={
                    "_class_name": "FlowMatchEulerDiscreteScheduler",
                    "shift": 3.0,
                },
                num_steps=4,
                guidance_scale=2.0,
                frames=5,
                height=16,
                width=32,
                fps=8,
                shift_option="shift",
                flow_shifts=((512, 3.0), (1024, 5.0)),
            ),
            compression=Compression(8, 4),
            frame_patch=1,
            training_shape=(2, config.channels, 2, 4),
        )

    @staticmethod
    def weight_role(name: str) -> str | None:
        """The weights of all blocks are those of sites."""
        inside = name.startswith(("mixing_blocks.", "closing_blocks."))
        return "site" if inside and name.endswith(".weight") else None

    def prepare_prompt(self, given: PromptInputs, *, dtype: Any) -> Any:
        """Text tokens, and what each mixing layer adds."""
        text = self.text_proj(given.text.astype(dtype))
        # A leading row axis, so that branches can be stacked; layers come second.
        layers = jnp.arange(1, self.config.mixing_layers + 1, dtype=text.dtype)
        return text, text.mean(1)[:, None] * layers[None, :, None]

    def embed(
        self,
        latents: Float[Array, "rows F C H W"],
        prompt: Any,
        timestep: Float[Array, "rows"],
        extra: Extra = NO_EXTRA,
    ) -> tuple[Float[Array, "rows tokens D"], Conditioning]:
        """Tokens and conditioning."""
        del extra
        text, added = prompt
        pixels = jnp.moveaxis(latents, 2, -1)
        video = self.proj_in(pixels.reshape(len(latents), -1, pixels.shape[-1]))
        shift = sinusoidal_embedding(timestep, self.config.dim).astype(latents.dtype)
        per_layer = {"mixing_blocks": jnp.moveaxis(added, 1, 0)}
        x = jnp.concatenate([text, video], 1)
        return x, Conditioning(shift, text.shape[1], per_layer)

    def unembed(
        self,
        x: Float[Array, "rows tokens D"],
        conditioning: Conditioning,
        latent_shape: tuple[int, ...],
    ) -> Float[Array, "rows F C H W"]:
        """The prediction."""
        rows, frames, _, height, width = latent_shape
        video = self.proj_out(jax.nn.silu(x[:, conditioning.num_text :]))
        video = video.reshape(rows, frames, height, width, self.config.channels)
        return jnp.moveaxis(video, -1, 2)
