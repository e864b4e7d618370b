"""Configuration of a Wan VAE, read from diffusers' config.json."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

# Training only, or registered by some published files and read by no code.
_IGNORED = {"dropout", "clip_output"}
# Attention outside of the middle, which no published network has.
_FIXED = {"attn_scales": ()}
_LISTS = ("dim_mult", "temperal_downsample", "latents_mean", "latents_std")

_MEAN_16 = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD_16 = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
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
        problems = [
            f"{name}: expected at least 1, found {value}"
            for name in (
                "base_dim",
                "decoder_base_dim",
                "z_dim",
                "num_res_blocks",
                "patch_size",
            )
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if not self.dim_mult or min(self.dim_mult) < 1:
            problems.append(
                f"dim_mult: expected positive numbers, found {list(self.dim_mult)}"
            )
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            problems.append(
                f"temperal_downsample: expected {len(self.dim_mult) - 1} values, one "
                f"less than dim_mult has, found {len(self.temperal_downsample)}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                problems.append(
                    f"{name}: expected z_dim ({self.z_dim}) values, found "
                    f"{len(getattr(self, name))}"
                )
        if min(self.latents_std, default=1.0) <= 0:
            problems.append("latents_std: expected positive values, found others")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) != 3 * self.patch**2:
                problems.append(
                    f"{name}: expected {3 * self.patch**2}, three colours of "
                    f"{self.patch}x{self.patch} pixels, found {getattr(self, name)}"
                )
        for name, factor in (
            ("scale_factor_temporal", 2 ** sum(self.temperal_downsample)),
            ("scale_factor_spatial", self.patch * 2 ** (len(self.dim_mult) - 1)),
        ):
            if getattr(self, name) != factor:
                problems.append(
                    f"{name}: expected {factor}, what the levels do, found "
                    f"{getattr(self, name)}"
                )
        if not problems and self.is_residual:
            problems = self._residual_problems()
        if problems:
            raise ValueError("Wan VAE config:\n  " + "\n  ".join(problems))

    def _residual_problems(self) -> list[str]:
        """Shortcuts that repeat or average channels need whole numbers of them."""
        problems = []
        for name, base in (("encoder", self.base_dim), ("decoder", self.decoder_dim)):
            dims = [base * m for m in (1, *self.dim_mult)]
            if name == "decoder":
                dims = [base * m for m in (self.dim_mult[-1], *self.dim_mult[::-1])]
            steps = self.temperal_downsample
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
        return problems

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
        known = {f.name for f in fields(cls)}
        problems = []
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key.startswith("_") or key in _IGNORED:
                continue
            if key in _FIXED:
                if tuple(value or ()) != _FIXED[key]:
                    problems.append(
                        f"{key}: expected {list(_FIXED[key])}, found {value!r}"
                    )
            elif key not in known:
                problems.append(f"{key}: not a key of a Wan VAE config")
            elif key in _LISTS:
                if isinstance(value, list | tuple):
                    chosen[key] = tuple(value)
                else:
                    problems.append(f"{key}: expected a list, found {value!r}")
            else:
                chosen[key] = value
        if problems:
            raise ValueError("Wan VAE config:\n  " + "\n  ".join(problems))
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {name: list(values[name]) for name in _LISTS}
        fixed = {name: list(value) for name, value in _FIXED.items()}
        return values | lists | fixed | {"dropout": 0.0}
