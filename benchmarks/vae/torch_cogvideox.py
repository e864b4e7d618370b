"""CogVideoX's decoder in plain PyTorch, with diffusers' parameter names.

The peer where diffusers is not installed: its loop over chunks, and a cache of two
frames for each causal convolution.
"""

from typing import Any

import torch  # pyrefly: ignore[missing-import]
from torch import nn  # pyrefly: ignore[missing-import]
from torch.nn import functional as F  # pyrefly: ignore[missing-import]

from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.group_norm import latent_frames


class Causal(nn.Module):
    """A causal convolution; what it keeps stands under its name."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        pad = (0, kernel // 2, kernel // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, padding=pad)
        self.past = kernel - 1
        self.key = ""

    def forward(self, x, old, new):
        """One chunk."""
        if not self.past:
            return self.conv(x)
        before = old.get(self.key)
        before = x[:, :, :1].repeat(1, 1, 2, 1, 1) if before is None else before
        x = torch.cat([before, x], dim=2)
        new[self.key] = x[:, :, -self.past :].clone()
        return self.conv(x)


class Norm(nn.Module):
    """The norm that reads the latents, and SiLU."""

    def __init__(self, channels: int, config: CogVideoXVAEConfig):
        super().__init__()
        latent = config.latent_channels
        self.norm_layer = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.conv_y = Causal(latent, channels, 1)
        self.conv_b = Causal(latent, channels, 1)

    def forward(self, x, z):
        """One chunk and its latents."""
        times = torch.as_tensor(latent_frames(x.shape[2], z.shape[2]), device=x.device)
        z = F.interpolate(z[:, :, times], size=(len(times), *x.shape[3:]))
        y = self.norm_layer(x) * self.conv_y(z, {}, {}) + self.conv_b(z, {}, {})
        return F.silu(y)


class Resnet(nn.Module):
    """Twice norm and convolution; added to the input."""

    def __init__(self, inputs: int, outputs: int, config: CogVideoXVAEConfig):
        super().__init__()
        self.norm1, self.norm2 = Norm(inputs, config), Norm(outputs, config)
        self.conv1 = Causal(inputs, outputs, 3)
        self.conv2 = Causal(outputs, outputs, 3)
        self.conv_shortcut = (
            None if inputs == outputs else nn.Conv3d(inputs, outputs, 1)
        )

    def forward(self, x, z, old, new):
        """One chunk."""
        y = self.conv1(self.norm1(x, z), old, new)
        y = self.conv2(self.norm2(y, z), old, new)
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Block(nn.Module):
    """Residual blocks, then a larger size; `up` is the factor in time, 0 for none."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: CogVideoXVAEConfig,
        *,
        layers: int,
        up: int,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            Resnet(outputs if i else inputs, outputs, config) for i in range(layers)
        )
        self.up = up
        if up:
            sampler = nn.Module()
            sampler.conv = nn.Conv2d(outputs, outputs, 3, padding=1)
            self.upsamplers = nn.ModuleList([sampler])

    def forward(self, x, z, old, new):
        """One chunk."""
        for resnet in self.resnets:
            x = resnet(x, z, old, new)
        if not self.up:
            return x
        first = x.shape[2] % 2 if x.shape[2] > 1 else x.shape[2]
        halves = ((x[:, :, :first], 1), (x[:, :, first:], self.up))
        parts = [
            F.interpolate(part, scale_factor=(time, 2, 2))
            for part, time in halves
            if part.shape[2]
        ]
        x = torch.cat(parts, dim=2)
        b, c, t, h, w = x.shape
        x = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
        x = self.upsamplers[0].conv(x)
        return x.reshape(b, t, c, h, w).permute(0, 2, 1, 3, 4)


class Network(nn.Module):
    """The decoder: one chunk and what was kept -> pixels and what to keep."""

    def __init__(self, config: CogVideoXVAEConfig):
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = Causal(config.latent_channels, widths[0], 3)
        self.mid_block = Block(widths[0], widths[0], config, layers=2, up=0)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            Block(
                widths[max(i - 1, 0)],
                outputs,
                config,
                layers=config.layers_per_block + 1,
                up=0 if i == last else 2 if i < config.time_levels else 1,
            )
            for i, outputs in enumerate(widths)
        )
        self.norm_out = Norm(widths[-1], config)
        self.conv_out = Causal(widths[-1], config.out_channels, 3)

    def forward(self, z, old):
        """One chunk of latents."""
        new: dict[str, Any] = {}
        x = self.mid_block(self.conv_in(z, old, new), z, old, new)
        for block in self.up_blocks:
            x = block(x, z, old, new)
        return self.conv_out(self.norm_out(x, z), old, new), new


class PlainDecoder(nn.Module):
    """Latents to pixels, with diffusers' loop over chunks."""

    def __init__(self, config: CogVideoXVAEConfig):
        super().__init__()
        self.decoder = Network(config)
        for name, module in self.named_modules():
            if isinstance(module, Causal):
                module.key = name

    def decode(self, z):
        """[batch, Z, F, H, W] -> pixels, in about [-1, 1]."""
        parts, cache, start = [], {}, 0
        for length in AutoencoderKLCogVideoX.decode_lengths(z.shape[2]):
            chunk, cache = self.decoder(z[:, :, start : start + length], cache)
            parts.append(chunk)
            start += length
        return torch.cat(parts, dim=2)
