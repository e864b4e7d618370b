"""HunyuanVideo's video autoencoder (diffusers `AutoencoderKLHunyuanVideo`).

Videos are coded in overlapping windows of frames, each for itself: the middle attends
over all tokens of a window, so that the windows are part of the model. Activations are
channels-last, [batch, F, H, W, C].
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.nn.linear import Linear
from sixbit_jax.vae.causal_conv import CausalConv3d, Padding, Stream
from sixbit_jax.vae.frame_groups import (
    Groups,
    convolve,
    frames_per_group,
    joined,
    split,
    split_all,
)
from sixbit_jax.vae.group_norm import GroupNorm, PointwiseConv
from sixbit_jax.vae.hunyuan_video_config import HunyuanVideoVAEConfig
from sixbit_jax.vae.windows import Windows

_EPS = 1e-6
# Rows of queries whose scores against all keys are in memory at a time.
_QUERY_ROWS = 1024


def _causal(
    inputs: int, outputs: int, *, stride=(1, 1, 1), rngs: nnx.Rngs
) -> CausalConv3d:
    return CausalConv3d(
        inputs, outputs, 3, padding=Padding.REPLICATE, stride=stride, rngs=rngs
    )


class ResnetBlock(nnx.Module):
    """Two normalized convolutions around a residual stream."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs, groups, eps=_EPS)
        self.conv1 = _causal(inputs, outputs, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups, eps=_EPS)
        self.conv2 = _causal(outputs, outputs, rngs=rngs)
        self.conv_shortcut = (
            None if inputs == outputs else PointwiseConv(inputs, outputs, rngs=rngs)
        )

    def __call__(self, x: Groups, stream: Stream) -> Groups:
        """One window."""
        before = self.norm1.over(x, kernels=stream.kernels)
        y = convolve(self.conv1, x, stream, before=before)
        if self.conv_shortcut is not None:
            # Here the wider x is read for the last time.
            x = tuple(self.conv_shortcut(part) for part in x)
            x, y = jax.lax.optimization_barrier((x, y))
        before = self.norm2.over(y, kernels=stream.kernels)
        return convolve(self.conv2, y, stream, before=before, residual=x)


def frame_causal_attention(
    query: Float[Array, "batch F tokens C"],
    key: Float[Array, "batch F tokens C"],
    value: Float[Array, "batch F tokens C"],
) -> Float[Array, "batch F tokens C"]:
    """One head; every frame attends to itself and all frames before it.

    Frame by frame, which needs no mask, and in blocks of queries, whose scores are
    all that is in memory. Scores and softmax are float32.

    Args:
      query, key, value: of every token of every frame.

    Returns:
      The mixed values, in the dtype of `value`.
    """
    batch, frames, tokens, channels = query.shape
    rows = min(tokens, _QUERY_ROWS)
    padded = -(-tokens // rows) * rows
    query = query * channels**-0.5
    query = jnp.pad(query, ((0, 0), (0, 0), (0, padded - tokens), (0, 0)))
    mixed = []
    for frame in range(frames):
        keys = key[:, : frame + 1].reshape(batch, -1, channels)
        values = value[:, : frame + 1].reshape(batch, -1, channels)

        def attend(block: Array, keys=keys, values=values) -> Array:
            scores = jnp.einsum(
                "bqc,bkc->bqk", block, keys, preferred_element_type=jnp.float32
            )
            weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
            return jnp.einsum("bqk,bkc->bqc", weights, values)

        blocks = query[:, frame].reshape(batch, -1, rows, channels)
        found = jax.lax.map(attend, jnp.moveaxis(blocks, 1, 0))
        mixed.append(jnp.moveaxis(found, 0, 1).reshape(batch, padded, channels))
    return jnp.stack(mixed, axis=1)[:, :, :tokens]


class Attention(nnx.Module):
    """Frame-causal self-attention over all tokens of a window, with its residual."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(channels, groups, eps=_EPS)
        self.to_q = Linear(channels, channels, rngs=rngs)
        self.to_k = Linear(channels, channels, rngs=rngs)
        self.to_v = Linear(channels, channels, rngs=rngs)
        self.to_out = Linear(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch F H W C"]
    ) -> Float[Array, "batch F H W C"]:
        """One window."""
        batch, frames, height, width, channels = x.shape
        tokens = self.group_norm(x, activate=False)
        tokens = tokens.reshape(batch, frames, height * width, channels)
        mixed = frame_causal_attention(
            self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        )
        return x + self.to_out(mixed).reshape(x.shape)


class MidBlock(nnx.Module):
    """Two residual blocks, with attention between them."""

    def __init__(self, config: HunyuanVideoVAEConfig, *, rngs: nnx.Rngs):
        width, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nnx.List(
            ResnetBlock(width, width, groups, rngs=rngs) for _ in range(2)
        )
        self.attention = (
            Attention(width, groups, rngs=rngs)
            if config.mid_block_add_attention
            else None
        )

    def __call__(self, x: Groups, stream: Stream) -> Groups:
        """One window."""
        x = self.resnets[0](x, stream)
        if self.attention is not None:
            x = split(self.attention(joined(x)), x[0].shape[1])
        return self.resnets[1](x, stream)


class Upsample(nnx.Module):
    """Nearest enlargement, the first frame not in time, then a causal convolution."""

    def __init__(self, channels: int, *, time: int, sides: int, rngs: nnx.Rngs):
        self.conv = _causal(channels, channels, rngs=rngs)
        self.time = time
        self.sides = sides

    def __call__(self, groups: Groups, stream: Stream) -> Groups:
        """One window."""
        batch, _, height, width, channels = groups[0].shape
        shape = (batch, 1, self.sides * height, self.sides * width, channels)
        size = frames_per_group(stream, shape, groups[0].dtype)
        # A frame is enlarged where it is convolved, and nowhere before.
        few = split_all(groups, max(1, size // self.time))
        return split_all(convolve(self.conv, few, stream, before=self._enlarged), size)

    def _enlarged(
        self, index: int, x: Float[Array, "batch F H W C"]
    ) -> Float[Array, "batch F2 H2 W2 C"]:
        """A group, which holds the first frame if it is the first one."""
        alone = int(index == 0)
        rest = jnp.repeat(x[:, alone:], self.time, axis=1)
        x = jnp.concatenate([x[:, :alone], rest], axis=1)
        batch, frames, height, width, channels = x.shape
        sides = self.sides
        return jnp.broadcast_to(
            x[:, :, :, None, :, None],
            (batch, frames, height, sides, width, sides, channels),
        ).reshape(batch, frames, sides * height, sides * width, channels)


class Level(nnx.Module):
    """Residual blocks of one width, then a change of size (None: none)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        *,
        layers: int,
        sampler: CausalConv3d | Upsample | None,
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            ResnetBlock(outputs if i else inputs, outputs, groups, rngs=rngs)
            for i in range(layers)
        )
        self.sampler = sampler

    def __call__(self, x: Groups, stream: Stream) -> Groups:
        """One window."""
        for resnet in self.resnets:
            x = resnet(x, stream)
        if isinstance(self.sampler, CausalConv3d):
            # Of its stride, frames of different groups are convolved together.
            made = self.sampler(joined(x), stream)
            return split(made, frames_per_group(stream, made.shape, made.dtype))
        return x if self.sampler is None else self.sampler(x, stream)


class Encoder(nnx.Module):
    """Pixels to the moments of the latents' distribution."""

    def __init__(self, config: HunyuanVideoVAEConfig, *, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = _causal(config.in_channels, widths[0], rngs=rngs)

        def level(index: int) -> Level:
            time, sides = config.factors(index)
            width = widths[index]
            stride = (time, sides, sides)
            sampler = None
            if stride != (1, 1, 1):
                sampler = _causal(width, width, stride=stride, rngs=rngs)
            return Level(
                widths[max(index - 1, 0)],
                width,
                groups,
                layers=config.layers_per_block,
                sampler=sampler,
                rngs=rngs,
            )

        self.down_blocks = nnx.List(level(i) for i in range(len(widths)))
        self.mid_block = MidBlock(config, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups, eps=_EPS)
        self.conv_out = _causal(widths[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: Stream
    ) -> Float[Array, "batch f h w moments"]:
        """One window of frames."""
        widest = (*x.shape[:4], self.conv_in.weight.shape[0])
        groups = split(x, frames_per_group(stream, widest, x.dtype))
        groups = convolve(self.conv_in, groups, stream)
        for block in self.down_blocks:
            groups = block(groups, stream)
        groups = self.mid_block(groups, stream)
        before = self.conv_norm_out.over(groups, kernels=stream.kernels)
        return joined(convolve(self.conv_out, groups, stream, before=before))


class Decoder(nnx.Module):
    """Latents to pixels."""

    def __init__(self, config: HunyuanVideoVAEConfig, *, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = _causal(config.latent_channels, widths[0], rngs=rngs)
        self.mid_block = MidBlock(config, rngs=rngs)

        def level(index: int) -> Level:
            time, sides = config.factors(index)
            width = widths[index]
            sampler = None
            if (time, sides) != (1, 1):
                sampler = Upsample(width, time=time, sides=sides, rngs=rngs)
            return Level(
                widths[max(index - 1, 0)],
                width,
                groups,
                layers=config.layers_per_block + 1,
                sampler=sampler,
                rngs=rngs,
            )

        self.up_blocks = nnx.List(level(i) for i in range(len(widths)))
        self.conv_norm_out = GroupNorm(widths[-1], groups, eps=_EPS)
        self.conv_out = _causal(widths[-1], config.out_channels, rngs=rngs)

    def __call__(
        self, z: Float[Array, "batch f h w Z"], stream: Stream
    ) -> Float[Array, "batch F H W C"]:
        """One window of latents."""
        x = self.conv_in(z, stream)
        groups = split(x, frames_per_group(stream, x.shape, x.dtype))
        groups = self.mid_block(groups, stream)
        for block in self.up_blocks:
            groups = block(groups, stream)
        before = self.conv_norm_out.over(groups, kernels=stream.kernels)
        return joined(convolve(self.conv_out, groups, stream, before=before))


class AutoencoderKLHunyuanVideo(nnx.Module):
    """Encoder and decoder; `sixbit_jax.vae.streaming` runs them over a video."""

    class_name = "AutoencoderKLHunyuanVideo"
    config_class = HunyuanVideoVAEConfig
    stacks: tuple[str, ...] = ()
    windows = Windows()

    def __init__(self, config: HunyuanVideoVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant_conv = PointwiseConv(2 * latent, 2 * latent, rngs=rngs)
        self.post_quant_conv = PointwiseConv(latent, latent, rngs=rngs)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter may be quantized: none of them may."""
        del name
        return None

    @staticmethod
    def decode_lengths(latent_frames: int) -> tuple[int, ...]:
        """A window is one chunk."""
        return (latent_frames,)

    @staticmethod
    def encode_lengths(frames: int) -> tuple[int, ...]:
        """A window is one chunk."""
        return (frames,)

    def decode_chunk(
        self, z: Float[Array, "batch f h w Z"], stream: Stream
    ) -> Float[Array, "batch F H W C"]:
        """Decodes one window."""
        return self.decoder(self.post_quant_conv(z), stream)

    def encode_chunk(
        self, x: Float[Array, "batch F H W C"], stream: Stream
    ) -> Float[Array, "batch f h w moments"]:
        """Mean and log variance of one window's latents, in the channels."""
        return self.quant_conv(self.encoder(x, stream))


def latents_from_model(config: HunyuanVideoVAEConfig, latents: Array) -> Array:
    """Latents as the transformer makes them -> as the decoder takes them."""
    return latents / config.scaling_factor


def latents_for_model(config: HunyuanVideoVAEConfig, latents: Array) -> Array:
    """Latents as the encoder makes them -> as the transformer takes them."""
    return latents * config.scaling_factor
