"""The two halves of the Wan VAE, as steps of a stream over time."""

import itertools

from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.vae.wan_blocks import (
    MidBlock,
    ResidualBlock,
    RMSNorm,
    WanStream,
)
from sixbit_jax.vae.wan_config import WanVAEConfig
from sixbit_jax.vae.wan_conv import WanConv
from sixbit_jax.vae.wan_resample import Downsample, Upsample, averaged, repeated


class DownBlock(nnx.Module):
    """A level of Wan 2.2's encoder, with an averaged shortcut around it."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        blocks: int,
        group: int,
        *,
        temporal: bool | None,
        rngs: nnx.Rngs,
    ):
        self.out_dim, self.group = out_dim, group
        # (frames, rows and columns) that become one.
        self.factors = (1, 1) if temporal is None else (2 if temporal else 1, 2)
        dims = [in_dim, *[out_dim] * blocks]
        self.resnets = nnx.List(
            [ResidualBlock(a, b, group, rngs=rngs) for a, b in itertools.pairwise(dims)]
        )
        self.downsampler = (
            None
            if temporal is None
            else Downsample(out_dim, group, temporal=temporal, rngs=rngs)
        )

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F2 H2 W2 D"]:
        """One chunk through the level."""
        # What is averaged with the first frame is zeros.
        before = self.group - 1 if self.factors[0] > 1 else 0
        rest = averaged(stream.clear(x, before), self.out_dim, *self.factors)
        for block in self.resnets:
            x = block(x, stream)
        if self.downsampler is not None:
            x = self.downsampler(x, stream)
        return x + rest


class UpBlock(nnx.Module):
    """A level of the decoder; `residual` has a repeated shortcut around it."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        blocks: int,
        group: int,
        *,
        temporal: bool | None,
        residual: bool,
        rngs: nnx.Rngs,
    ):
        self.out_dim = out_dim
        self.factors = None
        dims = [in_dim, *[out_dim] * blocks]
        self.resnets = nnx.List(
            [ResidualBlock(a, b, group, rngs=rngs) for a, b in itertools.pairwise(dims)]
        )
        up = None
        if temporal is not None:
            wide = out_dim if residual else out_dim // 2
            up = Upsample(out_dim, wide, group, temporal=temporal, rngs=rngs)
            self.factors = (2 if temporal else 1, 2) if residual else None
        # diffusers has a list of one in Wan 2.1 and a module in 2.2.
        self.upsamplers = nnx.List([up]) if up and not residual else None
        self.upsampler = up if residual else None

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F2 H2 W2 D"]:
        """One chunk through the level."""
        # The first frame's copies before its last one lie before the video.
        rest = (
            None if self.factors is None else repeated(x, self.out_dim, *self.factors)
        )
        for block in self.resnets:
            x = block(x, stream)
        if self.upsampler is not None and rest is not None:
            return self.upsampler(x, stream) + rest
        return x if self.upsamplers is None else self.upsamplers[0](x, stream)


class WanEncoder(nnx.Module):
    """Pixels to the mean and log variance of latents, before the last linear."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        dims = [config.base_dim * m for m in (1, *config.dim_mult)]
        group = config.scale_factor_temporal
        self.group = group
        self.conv_in = WanConv(config.in_channels, dims[0], 3, rngs=rngs)
        steps = (*config.temperal_downsample, None)
        levels: list[nnx.Module] = []
        for dim, out_dim, temporal in zip(dims[:-1], dims[1:], steps, strict=True):
            count = config.num_res_blocks
            if config.is_residual:
                levels.append(
                    DownBlock(dim, out_dim, count, group, temporal=temporal, rngs=rngs)
                )
            else:
                for i in range(count):
                    wide = dim if i == 0 else out_dim
                    levels.append(ResidualBlock(wide, out_dim, group, rngs=rngs))
                if temporal is not None:
                    levels.append(
                        Downsample(out_dim, group, temporal=temporal, rngs=rngs)
                    )
            group //= 2 if temporal else 1
        self.down_blocks = nnx.List(levels)
        self.mid_block = MidBlock(dims[-1], rngs=rngs)
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = WanConv(dims[-1], 2 * config.z_dim, 3, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F2 H2 W2 Z"]:
        """Encodes one chunk: whole groups of frames."""
        x = self.conv_in(stream.clear(x, self.group - 1), stream)
        for block in self.down_blocks:
            x = block(x, stream)
        x = self.mid_block(x, stream)
        return self.conv_out(self.norm_out(x, silu=True), stream)


class WanDecoder(nnx.Module):
    """Latents to pixels, after the first linear."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        mult = config.dim_mult[::-1]
        dims = [config.decoder_dim * m for m in (mult[0], *mult)]
        self.conv_in = WanConv(config.z_dim, dims[0], 3, rngs=rngs)
        self.mid_block = MidBlock(dims[0], rngs=rngs)
        steps = (*config.temperal_downsample[::-1], None)
        group = 1
        levels: list[nnx.Module] = []
        for i, temporal in enumerate(steps):
            halved = i > 0 and not config.is_residual
            levels.append(
                UpBlock(
                    dims[i] // 2 if halved else dims[i],
                    dims[i + 1],
                    config.num_res_blocks + 1,
                    group,
                    temporal=temporal,
                    residual=config.is_residual,
                    rngs=rngs,
                )
            )
            group *= 2 if temporal else 1
        self.group = group
        self.up_blocks = nnx.List(levels)
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = WanConv(dims[-1], config.out_channels, 3, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch F H W Z"], stream: WanStream
    ) -> Float[Array, "batch F2 H2 W2 C"]:
        """Decodes one chunk into whole groups of frames."""
        x = self.mid_block(self.conv_in(x, stream), stream)
        for block in self.up_blocks:
            x = block(x, stream)
        y = stream.clear(self.norm_out(x, silu=True), self.group - 1)
        return self.conv_out(y, stream)
