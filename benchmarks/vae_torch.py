"""The PyTorch peer: diffusers' autoencoder, or its decoder in plain PyTorch.

Records are empty where PyTorch or a GPU is missing.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.group_norm import latent_frames

_VARIANTS = ("eager", "channels_last_3d", "torch.compile")


def time_peers(
    config: CogVideoXVAEConfig, size: tuple[int, int, int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Decodes a video of `size` latents in bf16: seconds and peak memory."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch  # pyrefly: ignore[missing-import]

    if not torch.cuda.is_available():
        return
    torch.set_grad_enabled(False)
    frames, height, width = size
    with torch.device("cuda"):
        source, model, decode = build(torch, config, torch.bfloat16)
        shape = (1, config.latent_channels, frames, height, width)
        z = torch.randn(shape, dtype=torch.bfloat16)
    for variant in _VARIANTS:
        if variant == "channels_last_3d":
            # Not model.to(memory_format=...): it refuses the 2D convolutions' weights.
            for weight in model.parameters():
                if weight.ndim == 5:
                    weight.data = weight.to(memory_format=torch.channels_last_3d)
            z = z.to(memory_format=torch.channels_last_3d)
        if variant == "torch.compile":
            model.decoder.forward = torch.compile(model.decoder.forward)
        record = {"program": f"{source}, {variant}"}
        try:
            yield record | _time(torch, partial(decode, z), repeats)
        except RuntimeError as error:  # Out of memory is one of them.
            yield record | {"failure": f"{type(error).__name__}: {str(error)[:300]}"}


def _time(torch: Any, call: Callable, repeats: int) -> dict[str, Any]:
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times)
    return {
        "decode_s": seconds,
        "compile_s": first - seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def build(
    torch: Any, config: CogVideoXVAEConfig, dtype: Any
) -> tuple[str, Any, Callable]:
    """The network of random weights: who wrote it, the model, z -> pixels."""
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers import (  # pyrefly: ignore[missing-import]
            AutoencoderKLCogVideoX as Peer,
        )

        model = Peer(**config.to_dict()).to(dtype).eval()
        return "diffusers", model, lambda z: model.decode(z).sample
    model = plain(torch, config).to(dtype)
    return "PyTorch", model, lambda z: decode_plain(torch, model, z)


def decode_plain(torch: Any, model: Any, z: Any) -> Any:
    """diffusers' loop over chunks."""
    parts, cache, start = [], {}, 0
    for length in AutoencoderKLCogVideoX.decode_lengths(z.shape[2]):
        chunk, cache = model.decoder(z[:, :, start : start + length], cache)
        parts.append(chunk)
        start += length
    return torch.cat(parts, dim=2)


def plain(torch: Any, config: CogVideoXVAEConfig) -> Any:
    """The decoder in plain PyTorch, with diffusers' parameter names."""
    nn, functional = torch.nn, torch.nn.functional
    latent, groups = config.latent_channels, config.norm_num_groups

    class Conv(nn.Module):
        def __init__(self, inputs: int, outputs: int, kernel: int):
            super().__init__()
            pad = (0, kernel // 2, kernel // 2)
            self.conv = nn.Conv3d(inputs, outputs, kernel, padding=pad)
            self.past = kernel - 1
            self.key = ""

        def forward(self, x, old, new):
            if not self.past:
                return self.conv(x)
            before = old.get(self.key)
            before = x[:, :, :1].repeat(1, 1, 2, 1, 1) if before is None else before
            x = torch.cat([before, x], dim=2)
            new[self.key] = x[:, :, -self.past :].clone()
            return self.conv(x)

    class Norm(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.norm_layer = nn.GroupNorm(groups, channels, eps=1e-6)
            self.conv_y = Conv(latent, channels, 1)
            self.conv_b = Conv(latent, channels, 1)

        def forward(self, x, z):
            times = torch.as_tensor(
                latent_frames(x.shape[2], z.shape[2]), device=x.device
            )
            size = (len(times), *x.shape[3:])
            z = functional.interpolate(z[:, :, times], size=size)
            y = self.norm_layer(x) * self.conv_y(z, {}, {}) + self.conv_b(z, {}, {})
            return functional.silu(y)

    class Resnet(nn.Module):
        def __init__(self, inputs: int, outputs: int):
            super().__init__()
            self.norm1, self.norm2 = Norm(inputs), Norm(outputs)
            self.conv1 = Conv(inputs, outputs, 3)
            self.conv2 = Conv(outputs, outputs, 3)
            self.conv_shortcut = (
                None if inputs == outputs else nn.Conv3d(inputs, outputs, 1)
            )

        def forward(self, x, z, old, new):
            y = self.conv1(self.norm1(x, z), old, new)
            y = self.conv2(self.norm2(y, z), old, new)
            return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, layers: int, up: int):
            super().__init__()
            self.resnets = nn.ModuleList(
                Resnet(outputs if i else inputs, outputs) for i in range(layers)
            )
            self.up = up
            if up:
                sampler = nn.Module()
                sampler.conv = nn.Conv2d(outputs, outputs, 3, padding=1)
                self.upsamplers = nn.ModuleList([sampler])

        def forward(self, x, z, old, new):
            for resnet in self.resnets:
                x = resnet(x, z, old, new)
            if not self.up:
                return x
            first = x.shape[2] % 2 if x.shape[2] > 1 else x.shape[2]
            halves = ((x[:, :, :first], 1), (x[:, :, first:], self.up))
            parts = [
                functional.interpolate(part, scale_factor=(time, 2, 2))
                for part, time in halves
                if part.shape[2]
            ]
            x = torch.cat(parts, dim=2)
            b, c, t, h, w = x.shape
            x = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
            x = self.upsamplers[0].conv(x)
            return x.reshape(b, t, c, h, w).permute(0, 2, 1, 3, 4)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            widths = config.block_out_channels[::-1]
            self.conv_in = Conv(latent, widths[0], 3)
            self.mid_block = Block(widths[0], widths[0], 2, 0)
            last = len(widths) - 1
            self.up_blocks = nn.ModuleList(
                Block(
                    widths[max(i - 1, 0)],
                    outputs,
                    config.layers_per_block + 1,
                    0 if i == last else 2 if i < config.time_levels else 1,
                )
                for i, outputs in enumerate(widths)
            )
            self.norm_out = Norm(widths[-1])
            self.conv_out = Conv(widths[-1], config.out_channels, 3)

        def forward(self, z, old):
            new = {}
            x = self.mid_block(self.conv_in(z, old, new), z, old, new)
            for block in self.up_blocks:
                x = block(x, z, old, new)
            return self.conv_out(self.norm_out(x, z), old, new), new

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = Decoder()

    model = Model().eval()
    for name, module in model.named_modules():
        if isinstance(module, Conv):
            module.key = name
    return model
