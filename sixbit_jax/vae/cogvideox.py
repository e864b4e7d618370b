"""CogVideoX's video autoencoder (diffusers `AutoencoderKLCogVideoX`).

Group normalization takes its statistics from the frames it is given, so that the
lengths of the chunks are part of the model: `decode_lengths` and `encode_lengths` are
diffusers' rules. Activations are channels-last, [batch, F, H, W, C].
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.vae.causal_conv import CausalConv3d, Conv2d, Padding, Stream
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.frame_groups import (
    Groups,
    convolve,
    frames_per_group,
    joined,
    split,
    split_all,
)
from sixbit_jax.vae.group_norm import GroupNorm, PointwiseConv, SpatialNorm

_EPS = 1e-6
_LATENT_FRAMES = 2
_SAMPLE_FRAMES = 8


def _causal(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> CausalConv3d:
    return CausalConv3d(inputs, outputs, 3, padding=Padding.FIRST_FRAME, rngs=rngs)


class ResnetBlock(nnx.Module):
    """Two normalized convolutions around a residual stream.

    In the decoder the norms are spatial: they read the latents.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: CogVideoXVAEConfig,
        *,
        decoder: bool,
        rngs: nnx.Rngs,
    ):
        def norm(channels: int) -> GroupNorm | SpatialNorm:
            groups = config.norm_num_groups
            if not decoder:
                return GroupNorm(channels, groups, eps=config.norm_eps)
            latent = config.latent_channels
            return SpatialNorm(channels, latent, groups, eps=_EPS, rngs=rngs)

        self.norm1 = norm(inputs)
        self.conv1 = _causal(inputs, outputs, rngs=rngs)
        self.norm2 = norm(outputs)
        self.conv2 = _causal(outputs, outputs, rngs=rngs)
        self.conv_shortcut = (
            None if inputs == outputs else PointwiseConv(inputs, outputs, rngs=rngs)
        )

    def __call__(self, x: Groups, z: Array | None, stream: Stream) -> Groups:
        """One chunk; z are its latents (decoder) or None (encoder)."""
        context = () if z is None else (z,)
        before = self.norm1.over(x, *context, kernels=stream.kernels)
        y = convolve(self.conv1, x, stream, before=before)
        if self.conv_shortcut is not None:
            # Here the wider x is read for the last time.
            x = tuple(self.conv_shortcut(part) for part in x)
            x, y = jax.lax.optimization_barrier((x, y))
        before = self.norm2.over(y, *context, kernels=stream.kernels)
        return convolve(self.conv2, y, stream, before=before, residual=x)


class Downsample(nnx.Module):
    """Half the height and width, and half the frames where `time` says so."""

    def __init__(self, channels: int, *, time: bool, rngs: nnx.Rngs):
        self.conv = Conv2d(
            channels, channels, 3, stride=2, pad=((0, 1), (0, 1)), rngs=rngs
        )
        self.time = time

    def __call__(self, groups: Groups, stream: Stream) -> Groups:
        """One chunk; of an odd number of frames the first stays as it is."""
        x = joined(groups)
        if self.time and x.shape[1] > 1:
            first = x.shape[1] % 2
            pairs = x[:, first:].astype(jnp.float32)
            halves = (0.5 * (pairs[:, ::2] + pairs[:, 1::2])).astype(x.dtype)
            x = jnp.concatenate([x[:, :first], halves], axis=1)
        x = self.conv(x)
        return split(x, frames_per_group(stream, x.shape, x.dtype))


class Upsample(nnx.Module):
    """Twice the height and width, and twice the frames where `time` says so."""

    def __init__(self, channels: int, *, time: bool, rngs: nnx.Rngs):
        self.conv = Conv2d(channels, channels, 3, pad=((1, 1), (1, 1)), rngs=rngs)
        self.time = time

    def __call__(self, groups: Groups, stream: Stream) -> Groups:
        """One chunk; of an odd number of frames the first is not doubled."""
        batch, _, height, width, channels = groups[0].shape
        shape = (batch, 1, 2 * height, 2 * width, channels)
        size = frames_per_group(stream, shape, groups[0].dtype)
        frames = sum(group.shape[1] for group in groups)
        doubles = self.time and frames > 1
        results = []
        for i, x in enumerate(split_all(groups, size)):
            # The convolution is per frame, so that doubled frames need it once.
            x = self.conv(_enlarged(x))
            if doubles:
                alone = frames % 2 if i == 0 else 0
                rest = jnp.repeat(x[:, alone:], 2, axis=1)
                x = jnp.concatenate([x[:, :alone], rest], axis=1)
            results.append(x)
        return split_all(results, size)


def _enlarged(x: Float[Array, "batch F H W C"]) -> Float[Array, "batch F H2 W2 C"]:
    batch, frames, height, width, channels = x.shape
    shape = (batch, frames, height, 2, width, 2, channels)
    x = jnp.broadcast_to(x[:, :, :, None, :, None], shape)
    return x.reshape(batch, frames, 2 * height, 2 * width, channels)


class Level(nnx.Module):
    """Residual blocks of one width, then a change of size (None: the last level)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: CogVideoXVAEConfig,
        *,
        layers: int,
        decoder: bool,
        sampler: Downsample | Upsample | None,
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            ResnetBlock(
                outputs if i else inputs, outputs, config, decoder=decoder, rngs=rngs
            )
            for i in range(layers)
        )
        self.sampler = sampler

    def __call__(self, x: Groups, z: Array | None, stream: Stream) -> Groups:
        """One chunk; z are its latents (decoder) or None (encoder)."""
        for resnet in self.resnets:
            x = resnet(x, z, stream)
        return x if self.sampler is None else self.sampler(x, stream)


class Encoder(nnx.Module):
    """Pixels to the moments of the latents' distribution."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels
        self.conv_in = _causal(config.in_channels, widths[0], rngs=rngs)

        def level(index: int) -> Level:
            sampler = None
            if index < len(widths) - 1:
                time = index < config.time_levels
                sampler = Downsample(widths[index], time=time, rngs=rngs)
            inputs = widths[max(index - 1, 0)]
            return Level(
                inputs,
                widths[index],
                config,
                layers=config.layers_per_block,
                decoder=False,
                sampler=sampler,
                rngs=rngs,
            )

        self.down_blocks = nnx.List(level(i) for i in range(len(widths)))
        self.mid_block = _middle(widths[-1], config, decoder=False, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], config.norm_num_groups, eps=_EPS)
        self.conv_out = _causal(widths[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: Stream
    ) -> Float[Array, "batch f h w moments"]:
        """One chunk of frames."""
        widest = (*x.shape[:4], self.conv_in.weight.shape[0])
        groups = split(x, frames_per_group(stream, widest, x.dtype))
        groups = convolve(self.conv_in, groups, stream)
        for block in self.down_blocks:
            groups = block(groups, None, stream)
        groups = self.mid_block(groups, None, stream)
        before = self.norm_out.over(groups, kernels=stream.kernels)
        return joined(convolve(self.conv_out, groups, stream, before=before))


def _middle(
    width: int, config: CogVideoXVAEConfig, *, decoder: bool, rngs: nnx.Rngs
) -> Level:
    return Level(
        width, width, config, layers=2, decoder=decoder, sampler=None, rngs=rngs
    )


class Decoder(nnx.Module):
    """Latents to pixels."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels[::-1]
        self.conv_in = _causal(config.latent_channels, widths[0], rngs=rngs)
        self.mid_block = _middle(widths[0], config, decoder=True, rngs=rngs)

        def level(index: int) -> Level:
            sampler = None
            if index < len(widths) - 1:
                time = index < config.time_levels
                sampler = Upsample(widths[index], time=time, rngs=rngs)
            inputs = widths[max(index - 1, 0)]
            return Level(
                inputs,
                widths[index],
                config,
                layers=config.layers_per_block + 1,
                decoder=True,
                sampler=sampler,
                rngs=rngs,
            )

        self.up_blocks = nnx.List(level(i) for i in range(len(widths)))
        self.norm_out = SpatialNorm(
            widths[-1],
            config.latent_channels,
            config.norm_num_groups,
            eps=_EPS,
            rngs=rngs,
        )
        self.conv_out = _causal(widths[-1], config.out_channels, rngs=rngs)

    def __call__(
        self, z: Float[Array, "batch f h w Z"], stream: Stream
    ) -> Float[Array, "batch F H W C"]:
        """One chunk of latents."""
        x = self.conv_in(z, stream)
        groups = split(x, frames_per_group(stream, x.shape, x.dtype))
        groups = self.mid_block(groups, z, stream)
        for block in self.up_blocks:
            groups = block(groups, z, stream)
        before = self.norm_out.over(groups, z, kernels=stream.kernels)
        return joined(convolve(self.conv_out, groups, stream, before=before))


def _lengths(frames: int, size: int) -> tuple[int, ...]:
    """Chunks of `size` frames; what is left over comes with the first."""
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, found {frames}")
    if frames < size:
        return (frames,)
    return (size + frames % size, *(size,) * (frames // size - 1))


class AutoencoderKLCogVideoX(nnx.Module):
    """Encoder and decoder; `sixbit_jax.vae.streaming` runs them over a video."""

    class_name = "AutoencoderKLCogVideoX"
    config_class = CogVideoXVAEConfig
    stacks: tuple[str, ...] = ()
    # Causal state connects the chunks.
    windows = None

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter may be quantized: none of them may."""
        del name
        return None

    @staticmethod
    def decode_lengths(latent_frames: int) -> tuple[int, ...]:
        """Latent frames per chunk, as diffusers decodes a video (13: 3, 2, 2, ...)."""
        return _lengths(latent_frames, _LATENT_FRAMES)

    @staticmethod
    def encode_lengths(frames: int) -> tuple[int, ...]:
        """Frames per chunk, as diffusers encodes a video (49: 9, 8, 8, ...)."""
        return _lengths(frames, _SAMPLE_FRAMES)

    def decode_chunk(
        self, z: Float[Array, "batch f h w Z"], stream: Stream
    ) -> Float[Array, "batch F H W C"]:
        """Decodes the next chunk of a video."""
        return self.decoder(z, stream)

    def encode_chunk(
        self, x: Float[Array, "batch F H W C"], stream: Stream
    ) -> Float[Array, "batch f h w moments"]:
        """Mean and log variance of the next chunk's latents, in the channels."""
        return self.encoder(x, stream)


def latents_from_model(config: CogVideoXVAEConfig, latents: Array) -> Array:
    """Latents as the transformer makes them -> as the decoder takes them."""
    return latents / config.scaling_factor


def latents_for_model(
    config: CogVideoXVAEConfig, latents: Array, *, picture: bool = False
) -> Array:
    """Latents as the encoder makes them -> as the transformer takes them.

    Args:
      config: of the autoencoder.
      latents: mean or sample of the encoder's distribution.
      picture: whether they condition a video on a picture: some checkpoints were
        trained with the inverse scale there (`invert_scale_latents`).
    """
    if picture and config.invert_scale_latents:
        return latents / config.scaling_factor
    return latents * config.scaling_factor
