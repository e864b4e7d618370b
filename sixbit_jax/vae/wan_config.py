"""Configuration of a Wan VAE, read from diffusers' config.json."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sixbit_jax.config_schema import (
    Check,
    Schema,
    boolean,
    integer,
    number,
    optional,
    sequence,
)

_LISTS = ("dim_mult", "temperal_downsample", "latents_mean", "latents_std")
_MEAN_16 = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD_16 = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


def _levels(config: "WanVAEConfig") -> str | None:
    if config.dim_mult:
        return None
    return "dim_mult: expected at least one level, found []"


def _steps(config: "WanVAEConfig") -> str | None:
    wanted, found = len(config.dim_mult) - 1, len(config.temperal_downsample)
    if found == wanted:
        return None
    return (
        f"temperal_downsample: expected {wanted} values, one less than dim_mult has, "
        f"found {found}"
    )


def _of_latents(name: str) -> Callable[["WanVAEConfig"], str | None]:
    def problem(config: "WanVAEConfig") -> str | None:
        found = len(getattr(config, name))
        if found == config.z_dim:
            return None
        return f"{name}: expected z_dim ({config.z_dim}) values, found {found}"

    return problem


def _of_patches(name: str) -> Callable[["WanVAEConfig"], str | None]:
    def problem(config: "WanVAEConfig") -> str | None:
        patch, found = config.patch, getattr(config, name)
        if found == 3 * patch**2:
            return None
        return (
            f"{name}: expected {3 * patch**2}, three colours of {patch}x{patch} "
            f"pixels, found {found}"
        )

    return problem


def _factor(name: str, wanted: int, found: int) -> str | None:
    if found == wanted:
        return None
    return f"{name}: expected {wanted}, what the levels do, found {found}"


def _temporal(config: "WanVAEConfig") -> str | None:
    wanted = 2 ** sum(config.temperal_downsample)
    return _factor("scale_factor_temporal", wanted, config.scale_factor_temporal)


def _spatial(config: "WanVAEConfig") -> str | None:
    wanted = config.patch * 2 ** max(len(config.dim_mult) - 1, 0)
    return _factor("scale_factor_spatial", wanted, config.scale_factor_spatial)


def _shortcuts(config: "WanVAEConfig") -> str | None:
    """Shortcuts that repeat or average channels need whole numbers of them."""
    if not config.is_residual or _steps(config) or _levels(config):
        return None
    problems = []
    for name, base in (("encoder", config.base_dim), ("decoder", config.decoder_dim)):
        dims = [base * m for m in (1, *config.dim_mult)]
        if name == "decoder":
            dims = [base * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
        steps = config.temperal_downsample
        steps = steps if name == "encoder" else steps[::-1]
        for i, (given, made) in enumerate(itertools.pairwise(dims)):
            factor = (8 if steps[i] else 4) if i < len(steps) else 1
            if name == "decoder" and i == len(steps):
                continue  # no shortcut around the last level
            a, b = (given, made) if name == "encoder" else (made, given)
            if a * factor % b:
                problems.append(
                    f"{name} level {i}: expected {a} channels times {factor} to be "
                    f"a multiple of {b}, found a remainder"
                )
    return "\n  ".join(problems) or None


def _nothing(value: Any) -> tuple:
    """Attention outside of the middle, which no published network has."""
    if tuple(value or ()):
        raise ValueError(value)
    return ()


_WIDTH = integer(1, 65536)
_FACTOR = integer(1, 65536)
_SCHEMA = Schema(
    "Wan VAE config",
    {
        "base_dim": _WIDTH,
        "decoder_base_dim": optional(_WIDTH),
        "z_dim": _WIDTH,
        "dim_mult": sequence(integer(1, 1024), at_most=16),
        "num_res_blocks": integer(1, 64),
        "temperal_downsample": sequence(boolean(), at_most=16),
        "latents_mean": sequence(number(-1e6, 1e6)),
        "latents_std": sequence(number(0, 1e6, above=True)),
        "is_residual": boolean(),
        "in_channels": _WIDTH,
        "out_channels": _WIDTH,
        "patch_size": optional(integer(1, 64)),
        "scale_factor_temporal": _FACTOR,
        "scale_factor_spatial": _FACTOR,
    },
    {
        "attn_scales": Check("[]", _nothing),
        # Training only, or registered by some published files and read by no code.
        "dropout": number(0, 1),
        "clip_output": optional(boolean()),
    },
    relations={
        ("dim_mult",): _levels,
        ("dim_mult", "temperal_downsample"): _steps,
        ("latents_mean", "z_dim"): _of_latents("latents_mean"),
        ("latents_std", "z_dim"): _of_latents("latents_std"),
        ("in_channels", "patch_size"): _of_patches("in_channels"),
        ("out_channels", "patch_size"): _of_patches("out_channels"),
        ("scale_factor_temporal", "temperal_downsample"): _temporal,
        ("scale_factor_spatial", "patch_size", "dim_mult"): _spatial,
        (
            "is_residual",
            "base_dim",
            "decoder_base_dim",
            "dim_mult",
            "temperal_downsample",
        ): _shortcuts,
    },
)


@dataclass(frozen=True)
class WanVAEConfig:
    """Names, meanings and defaults are those of diffusers 0.42 (Wan 2.1).

    Attributes:
      base_dim: channels of the encoder's first level.
      decoder_base_dim: those of the decoder's last level; None for `base_dim`.
      z_dim: channels of the latents, z.
      dim_mult: channels of each level as a multiple of the base, finest level first.
      num_res_blocks: residual blocks of a level of the encoder; the decoder has one
        more.
      temperal_downsample: whether the step below a level halves the frames as well as
        rows and columns (diffusers' spelling).
      latents_mean, latents_std: statistics of the latents, z numbers each.
      is_residual: Wan 2.2: every level has a shortcut around it.
      in_channels, out_channels: of the video, times `patch_size` squared.
      patch_size: pixels of a row and column that become channels, or None.
      scale_factor_temporal: frames of the video to a frame of the latents.
      scale_factor_spatial: pixels to a row or column of the latents.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _MEAN_16
    latents_std: tuple[float, ...] = _STD_16
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self):
        _SCHEMA.check(self)

    @property
    def decoder_dim(self) -> int:
        """Channels of the decoder's last level."""
        return self.base_dim if self.decoder_base_dim is None else self.decoder_base_dim

    @property
    def patch(self) -> int:
        """Pixels of a row and column that become channels, 1 for none."""
        return 1 if self.patch_size is None else self.patch_size

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, by the name that the other autoencoders have."""
        return self.z_dim

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels to a row or column of the latents."""
        return self.scale_factor_spatial

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames of the video to a frame of the latents."""
        return self.scale_factor_temporal

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WanVAEConfig":
        """Reads the mapping of a diffusers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        return _SCHEMA.read(values, cls)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {name: list(values[name]) for name in _LISTS}
        return values | lists | {"attn_scales": [], "dropout": 0.0}
