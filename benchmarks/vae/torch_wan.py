"""Wan 2.1's decoder in plain PyTorch, as diffusers writes it: the peer without it.

One latent frame at a time, each causal convolution with a cache of two frames.
"""

from typing import Any

import torch  # pyrefly: ignore[missing-import]
from torch import nn  # pyrefly: ignore[missing-import]
from torch.nn import functional as F  # pyrefly: ignore[missing-import]

from sixbit_jax.vae.wan_config import WanVAEConfig


class Causal(nn.Conv3d):
    """A causal convolution that keeps the last two frames it has seen."""

    def __init__(self, in_dim: int, out_dim: int, kernel: Any):
        super().__init__(in_dim, out_dim, kernel)
        size = self.kernel_size
        sides = (size[2] // 2, size[2] // 2, size[1] // 2, size[1] // 2)
        self.sides = sides

    def forward(self, x, past):
        """The convolved chunk, and the frames to keep."""
        depth = self.kernel_size[0]
        if depth == 1:
            return super().forward(x), None
        if past is None:
            past = x.new_zeros(*x.shape[:2], depth - 1, *x.shape[3:])
        x = torch.cat([past, x], 2)
        kept = x[:, :, 1 - depth :].clone()
        return super().forward(F.pad(x, (*self.sides, 0, 0))), kept


class RMS(nn.Module):
    """The norm over channels, in float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1))

    def forward(self, x):
        """Unit vectors times the root of their length, times gamma."""
        y = F.normalize(x.float(), dim=1).to(x.dtype)
        return y * x.shape[1] ** 0.5 * self.gamma


class Resnet(nn.Module):
    """Twice norm, SiLU, convolution; added to the input."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.norm1, self.norm2 = RMS(in_dim), RMS(out_dim)
        self.conv1, self.conv2 = Causal(in_dim, out_dim, 3), Causal(out_dim, out_dim, 3)
        self.shortcut = nn.Conv3d(in_dim, out_dim, 1) if in_dim != out_dim else None

    def forward(self, x, past):
        """One chunk, and what its two convolutions keep."""
        rest = x if self.shortcut is None else self.shortcut(x)
        x, first = self.conv1(F.silu(self.norm1(x)), past and past[0])
        x, second = self.conv2(F.silu(self.norm2(x)), past and past[1])
        return x + rest, (first, second)


class Attention(nn.Module):
    """One head among the pixels of each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.dim = RMS(dim), dim
        self.to_qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        """Adds what each pixel finds."""
        batch, dim, frames, height, width = x.shape
        y = self.norm(x).transpose(1, 2).reshape(-1, dim, height, width)
        y = self.to_qkv(y).reshape(batch * frames, 1, 3 * dim, -1).transpose(2, 3)
        y = F.scaled_dot_product_attention(*y.contiguous().chunk(3, -1))
        y = self.proj(y.squeeze(1).transpose(1, 2).reshape(-1, dim, height, width))
        return x + y.view(batch, frames, dim, height, width).transpose(1, 2)


class Up(nn.Module):
    """Twice the rows and columns, and the frames of all but the first chunk."""

    def __init__(self, dim: int, *, temporal: bool):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.time_conv = Causal(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x, past, begins: bool):
        """One chunk, and what the convolution over time keeps."""
        batch, dim, frames, height, width = x.shape
        if self.time_conv is not None and not begins:
            x, past = self.time_conv(x, past)
            x = x.reshape(batch, 2, dim, frames, height, width)
            x = torch.stack((x[:, 0], x[:, 1]), 3).reshape(
                batch, dim, 2 * frames, height, width
            )
        frames = x.shape[2]
        x = x.transpose(1, 2).reshape(-1, dim, height, width)
        x = F.interpolate(x.float(), scale_factor=2.0, mode="nearest-exact").to(x.dtype)
        x = self.conv(x)
        return x.view(batch, frames, *x.shape[1:]).transpose(1, 2), past


class Network(nn.Module):
    """The decoder's layers after the first linear."""

    def __init__(self, config: WanVAEConfig):
        super().__init__()
        mult = config.dim_mult[::-1]
        dims = [config.decoder_dim * m for m in (mult[0], *mult)]
        self.conv_in = Causal(config.z_dim, dims[0], 3)
        layers: list[nn.Module] = [Resnet(dims[0], dims[0]), Attention(dims[0])]
        layers.append(Resnet(dims[0], dims[0]))
        for i, temporal in enumerate((*config.temperal_downsample[::-1], None)):
            given = dims[i] // 2 if i > 0 else dims[i]
            for block in range(config.num_res_blocks + 1):
                layers.append(Resnet(given if block == 0 else dims[i + 1], dims[i + 1]))
            if temporal is not None:
                layers.append(Up(dims[i + 1], temporal=temporal))
        self.layers = nn.ModuleList(layers)
        self.norm_out = RMS(dims[-1])
        self.conv_out = Causal(dims[-1], config.out_channels, 3)

    def forward(self, x, past, begins: bool):
        """One chunk, and what every layer keeps."""
        kept = []
        x, found = self.conv_in(x, past and past[0])
        kept.append(found)
        for i, layer in enumerate(self.layers):
            before, found = past and past[i + 1], None
            if isinstance(layer, Attention):
                x = layer(x)
            elif isinstance(layer, Up):
                x, found = layer(x, before, begins)
            else:
                x, found = layer(x, before)
            kept.append(found)
        x, found = self.conv_out(F.silu(self.norm_out(x)), past and past[-1])
        return x, [*kept, found]


class PlainDecoder(nn.Module):
    """Latents to pixels, one latent frame at a time.

    Raises:
      NotImplementedError: for Wan 2.2.
    """

    def __init__(self, config: WanVAEConfig):
        super().__init__()
        if config.is_residual:
            raise NotImplementedError("this decoder is Wan 2.1's: needs diffusers")
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Network(config)

    def decode(self, z):
        """[batch, Z, F, H, W] -> [batch, 3, 4 F - 3, 8 H, 8 W], in [-1, 1]."""
        z = self.post_quant_conv(z)
        past, parts = None, []
        for i in range(z.shape[2]):
            part, past = self.decoder(z[:, :, i : i + 1], past, i == 0)
            parts.append(part)
        return torch.cat(parts, 2).clamp(-1.0, 1.0)
