"""From a picture to the pixels that CLIP's vision encoder reads.

The arithmetic is that of transformers' `CLIPImageProcessor` on Pillow, with which Wan
2.1 was published: resize the shorter edge, cut out the centre, normalise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

_FLAGS = (
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
)
_IGNORED = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "crop_pct",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_pad",
    "input_data_format",
    "pad_size",
    "return_tensors",
}


@dataclass(frozen=True)
class CLIPPixelsConfig:
    """Names are transformers'; defaults are those of every published CLIP.

    Attributes:
      shortest_edge: pixels of the resized picture's shorter side.
      crop_size: height and width of the part in the middle.
      resample: Pillow's number of the filter; 3 is bicubic.
      rescale_factor: what the 8-bit values are multiplied with.
      image_mean, image_std: numbers of each channel, after rescaling.
    """

    shortest_edge: int = 224
    crop_size: tuple[int, int] = (224, 224)
    resample: int = 3
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        problems = []
        if min(self.crop_size) < 1 or max(self.crop_size) > self.shortest_edge:
            problems.append(
                f"crop_size: expected 1 to shortest_edge {self.shortest_edge}, found "
                f"{list(self.crop_size)}"
            )
        if self.resample not in list(Image.Resampling):
            problems.append(
                f"resample: expected a filter of Pillow, 0 to 5, found {self.resample}"
            )
        if min(self.image_std) <= 0:
            problems.append(
                f"image_std: expected positive, found {list(self.image_std)}"
            )
        if problems:
            raise ValueError("CLIP image processor:\n  " + "\n  ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPPixelsConfig":
        """Reads the mapping of a `preprocessor_config.json`.

        Raises:
          ValueError: for steps that are switched off, unsupported sizes and unknown
            keys; lists all of them.
        """
        problems: list[str] = []
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key in _FLAGS:
                if value is not True:
                    problems.append(f"{key}: expected true, found {value!r}")
            elif key == "size":
                # Old files have the number alone.
                edge = value.get("shortest_edge") if isinstance(value, dict) else value
                if not isinstance(edge, int):
                    problems.append(f"size: expected a shortest_edge, found {value!r}")
                else:
                    chosen["shortest_edge"] = edge
            elif key == "crop_size":
                sides = value if isinstance(value, dict) else {}
                chosen[key] = (sides.get("height", value), sides.get("width", value))
            elif key in ("image_mean", "image_std"):
                chosen[key] = tuple(value)
            elif key in ("resample", "rescale_factor"):
                chosen[key] = value
            elif key not in _IGNORED and key[:1] != "_":
                problems.append(f"{key}: not a key of a CLIP image processor")
        if problems:
            raise ValueError("CLIP image processor:\n  " + "\n  ".join(problems))
        return cls(**chosen)


def clip_pixels(
    picture: Image.Image,
    config: CLIPPixelsConfig = CLIPPixelsConfig(),
) -> Float[np.ndarray, "3 H W"]:
    """Resizes, cuts and normalises one picture.

    Args:
      picture: of any mode; what is transparent becomes white, as in transformers 5
        (release 4 dropped the alpha channel).
      config: the published processor's numbers.

    Returns:
      float32, channels first, for `CLIPVisionEncoder`.
    """
    rgb = on_white(picture)
    width, height = rgb.size
    short, long = min(width, height), max(width, height)
    edge = config.shortest_edge
    other = int(edge * long / short)
    size = (edge, other) if width <= height else (other, edge)
    resized = rgb.resize(size, resample=Image.Resampling(config.resample))
    values = np.asarray(resized)
    crop_height, crop_width = config.crop_size
    top = (values.shape[0] - crop_height) // 2
    left = (values.shape[1] - crop_width) // 2
    values = values[top : top + crop_height, left : left + crop_width]
    scaled = (values.astype(np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.asarray(config.image_mean, np.float32)
    std = np.asarray(config.image_std, np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB, transparency composited onto white."""
    transparent = picture.info.get("transparency") is not None
    if not transparent and "A" not in picture.getbands():
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    background = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(background, layer).convert("RGB")
