"""Floating point operations of the decoders, as the published networks do them."""

from typing import Any


def cogvideox(config: Any, size: tuple[int, int, int]) -> float:
    """Of the 3x3x3 and 3x3 convolutions; upsampled frames are all convolved.

    Args:
      config: of the autoencoder.
      size: latent frames, height and width.
    """
    frames, height, width = size
    widths = config.block_out_channels[::-1]
    pixels = frames * height * width
    taps = 27 * pixels * (config.latent_channels + 4 * widths[0]) * widths[0]
    for level, outputs in enumerate(widths):
        inputs = widths[max(level - 1, 0)]
        blocks = inputs + (2 * config.layers_per_block + 1) * outputs
        taps += 27 * pixels * blocks * outputs
        if level < len(widths) - 1:
            if level < config.time_levels:
                frames = 2 * frames - (frames % 2)
            height, width = 2 * height, 2 * width
            pixels = frames * height * width
            taps += 9 * pixels * outputs * outputs
    taps += 27 * pixels * widths[-1] * config.out_channels
    return 2.0 * taps


def wan(config: Any, size: tuple[int, int, int]) -> float:
    """Of all convolutions and the attention in the middle.

    Args:
      config: of the autoencoder.
      size: latent frames, height and width.
    """
    frames, height, width = size
    mult = config.dim_mult[::-1]
    dims = [config.decoder_dim * m for m in (mult[0], *mult)]
    steps = (*config.temperal_downsample[::-1], None)
    pixels, wide = frames * height * width, dims[0]
    macs = 27 * pixels * wide * (config.z_dim + 4 * wide)
    macs += pixels * wide * (4 * wide + 2 * height * width)
    for i, temporal in enumerate(steps):
        out = dims[i + 1]
        given = dims[i] // 2 if i > 0 and not config.is_residual else dims[i]
        blocks = given + (2 * config.num_res_blocks + 1) * out
        macs += pixels * out * (27 * blocks + (given if given != out else 0))
        if temporal is None:
            continue
        if temporal:
            macs += 6 * (frames - 1) * height * width * out * out
            frames = 2 * frames - 1
        height, width = 2 * height, 2 * width
        pixels = frames * height * width
        macs += 9 * pixels * out * (out if config.is_residual else out // 2)
    return 2.0 * (macs + 27 * pixels * dims[-1] * config.out_channels)
