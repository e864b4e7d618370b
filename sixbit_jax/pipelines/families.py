"""What the published pipelines do with a prompt, by their class name."""

from collections.abc import Callable
from dataclasses import dataclass

from sixbit_jax.text_encoders.prompts import (
    HUNYUAN_VIDEO_CROP,
    HUNYUAN_VIDEO_TEMPLATE,
    clean_wan_prompt,
)


def _as_it_is(prompt: str) -> str:
    return prompt


@dataclass(frozen=True)
class TextRule:
    """How prompts become embeddings.

    Attributes:
      clean: what happens to the text first.
      masked: whether the encoder is told which tokens are padding; the rows of padding
        are then zeros, or hidden from the network by a mask. Without, padding is read,
        and all rows are used.
      template: text around the prompt, which stands for "{}".
      crop: leading rows, of the template, that are dropped after encoding.
      pooled: whether a second encoder makes one vector of the prompt alone.
      outside: whether prompts are embedded elsewhere, by an encoder without a port.
    """

    clean: Callable[[str], str] = _as_it_is
    masked: bool = False
    template: str = "{}"
    crop: int = 0
    pooled: bool = False
    outside: bool = False


COGVIDEOX = TextRule()
WAN = TextRule(clean_wan_prompt, masked=True)
HUNYUAN_VIDEO = TextRule(
    masked=True,
    template=HUNYUAN_VIDEO_TEMPLATE,
    crop=HUNYUAN_VIDEO_CROP,
    pooled=True,
)
# LLaVA, which reads the picture too.
HUNYUAN_VIDEO_PICTURE = TextRule(outside=True)

PIPELINES: dict[str, TextRule] = {
    "CogVideoXPipeline": COGVIDEOX,
    "CogVideoXImageToVideoPipeline": COGVIDEOX,
    "CogVideoXVideoToVideoPipeline": COGVIDEOX,
    "WanPipeline": WAN,
    "WanImageToVideoPipeline": WAN,
    "WanVideoToVideoPipeline": WAN,
    "HunyuanVideoPipeline": HUNYUAN_VIDEO,
    "HunyuanVideoImageToVideoPipeline": HUNYUAN_VIDEO_PICTURE,
}
"""Pipelines that can be converted, by the class name in `model_index.json`."""
