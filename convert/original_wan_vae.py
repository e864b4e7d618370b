"""The Wan autoencoder in its original layout (`Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`).

Its key names become diffusers', and what diffusers' `config.json` would say is read
off the names and shapes. Only the statistics of the latents stand in no file: they are
those of the published network with as many channels.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from convert.errors import ConversionError
from convert.rules import Rule, first_rule, rename_all
from convert.safetensors_file import TensorInfo

_MODEL = "AutoencoderKLWan"
_HALF = "{half:encoder|decoder}."
# Of a residual block: original -> diffusers.
_LAYERS = {
    "residual.0.gamma": "norm1.gamma",
    "residual.2.{leaf}": "conv1.{leaf}",
    "residual.3.gamma": "norm2.gamma",
    "residual.6.{leaf}": "conv2.{leaf}",
    "shortcut.{leaf}": "conv_shortcut.{leaf}",
}
_RESAMPLE = ("resample.1.{leaf}", "time_conv.{leaf}")
_OUTSIDE = (
    # The linears over the latents.
    Rule("conv1.{leaf}", "quant_conv.{leaf}"),
    Rule("conv2.{leaf}", "post_quant_conv.{leaf}"),
    Rule(_HALF + "conv1.{leaf}", "{half}.conv_in.{leaf}"),
    Rule(_HALF + "head.0.gamma", "{half}.norm_out.gamma"),
    Rule(_HALF + "head.2.{leaf}", "{half}.conv_out.{leaf}"),
    *(
        Rule(_HALF + f"middle.{2 * i}.{old}", f"{{half}}.mid_block.resnets.{i}.{new}")
        for i in (0, 1)
        for old, new in _LAYERS.items()
    ),
    *(
        Rule(_HALF + f"middle.1.{name}", f"{{half}}.mid_block.attentions.0.{name}")
        for name in ("norm.gamma", "to_qkv.{leaf}", "proj.{leaf}")
    ),
)
# Of the latents of Wan 2.2, as its authors publish them.
_STATISTICS_22 = {
    "latents_mean": [
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
        *(-0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825),
        *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123),
        *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748),
        *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ],
    "latents_std": [
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013),
        *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
        *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
        *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
        *(0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ],
}
_NUMBER = re.compile(r"(encoder|decoder)\.(?:down|up)samples\.(\d+)\.")


def renamed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under diffusers' names.

    Args:
      tensors: by original names.

    Raises:
      ConversionError: lists the keys that are not of this layout.
    """
    rules = partial(first_rule, _rules(tensors))
    return rename_all(tensors, rules, "Wan's autoencoder")


def is_original(keys: Mapping[str, Any]) -> bool:
    """Whether these are the key names of the authors' autoencoder."""
    return "conv2.weight" in keys and "decoder.middle.0.residual.2.weight" in keys


def _rules(keys: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Rules of the version of the network that has these keys."""
    nested = any(re.match(r"encoder\.downsamples\.\d+\.downsamples\.", k) for k in keys)
    return (*_OUTSIDE, *(_levels_22(keys) if nested else _levels_21(keys)))


def _levels_21(keys: Mapping[str, Any]) -> list[Rule]:
    """Wan 2.1: all blocks of a half stand in one row; diffusers nests the decoder's."""
    down = "encoder.downsamples.{block:[0-9]+}."
    rules = [
        Rule(down + old, "encoder.down_blocks.{block}." + new)
        for old, new in (*_LAYERS.items(), *((name, name) for name in _RESAMPLE))
    ]
    level = block = 0
    for i in range(1 + max(_numbers(keys, "decoder"), default=-1)):
        up = f"decoder.upsamples.{i}."
        if up + "resample.1.weight" in keys:
            target = f"decoder.up_blocks.{level}.upsamplers.0."
            rules += [Rule(up + name, target + name) for name in _RESAMPLE]
            level, block = level + 1, 0
        else:
            target = f"decoder.up_blocks.{level}.resnets.{block}."
            rules += [Rule(up + old, target + new) for old, new in _LAYERS.items()]
            block += 1
    return rules


def _levels_22(keys: Mapping[str, Any]) -> list[Rule]:
    """Wan 2.2: a row of blocks in every level, the step to the next one at its end."""
    rules = []
    for half, way in (("encoder", "down"), ("decoder", "up")):
        row = f"{half}.{way}samples.{{level:[0-9]+}}.{way}samples.{{block:[0-9]+}}."
        target = f"{half}.{way}_blocks.{{level}}."
        rules += [
            Rule(row + old, target + "resnets.{block}." + new)
            for old, new in _LAYERS.items()
        ]
        rules += [
            Rule(row + name, target + f"{way}sampler.{name}") for name in _RESAMPLE
        ]
    return rules


def _numbers(keys: Mapping[str, Any], half: str) -> set[int]:
    found = (match for key in keys if (match := _NUMBER.match(key)))
    return {int(match[2]) for match in found if match[1] == half}


def config_of(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The diffusers `config.json` of an autoencoder, from its names and shapes.

    Args:
      tensors: under diffusers' names.

    Raises:
      ConversionError: lists the tensors that it needs and that are missing, or says
        that no published network has latents of this many channels.
    """
    needed = (
        "encoder.conv_in.weight",
        "decoder.conv_out.weight",
        "post_quant_conv.weight",
    )
    if missing := [name for name in needed if name not in tensors]:
        raise ConversionError(
            "found the original layout of Wan's autoencoder, incomplete: expected (by "
            f"diffusers' names) {', '.join(missing)}"
        )
    first, last, latents = (tensors[name].shape for name in needed)
    if latents[0] not in (16, 48):
        raise ConversionError(
            "original layout of Wan's autoencoder: expected latents of 16 channels "
            f"(Wan 2.1) or 48 (Wan 2.2), whose statistics are known, found {latents[0]}"
        )
    residual = any(".upsampler." in name for name in tensors)
    ups = [(n, "upsampler" if residual else "upsamplers.0") for n in range(99)]
    names = [f"decoder.up_blocks.{n}.{up}." for n, up in ups]
    names = [name for name in names if name + "resample.1.weight" in tensors]
    temporal = [name + "time_conv.weight" in tensors for name in names][::-1]
    widths = [
        tensors[f"decoder.up_blocks.{n}.resnets.0.conv2.weight"].shape[0]
        for n in range(len(names) + 1)
    ][::-1]
    blocks = sum(
        f"decoder.up_blocks.0.resnets.{n}.conv1.weight" in tensors for n in range(99)
    )
    patch = 1 if first[1] == 3 else 2
    return {
        "_class_name": _MODEL,
        "base_dim": first[0],
        "decoder_base_dim": last[1],
        "z_dim": latents[0],
        "dim_mult": [width // widths[0] for width in widths],
        "num_res_blocks": blocks - 1,
        "temperal_downsample": temporal,
        "is_residual": residual,
        "in_channels": first[1],
        "out_channels": last[0],
        "patch_size": None if patch == 1 else patch,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": patch * 2 ** len(names),
    } | ({} if latents[0] == 16 else _STATISTICS_22)
