"""What the published pipelines do with a prompt, by their class name."""

from collections.abc import Callable
from dataclasses import dataclass

from sixbit_jax.text_encoders.prompts import clean_wan_prompt


def _as_it_is(prompt: str) -> str:
    return prompt


@dataclass(frozen=True)
class TextRule:
    """How prompts become embeddings.

    Attributes:
      clean: what happens to the text first.
      masked: whether the encoder is told which tokens are padding; the rows of padding
        are then zeros. Without, padding is read, and all rows are used.
    """

    clean: Callable[[str], str] = _as_it_is
    masked: bool = False


COGVIDEOX = TextRule()
WAN = TextRule(clean_wan_prompt, masked=True)

PIPELINES: dict[str, TextRule] = {
    "CogVideoXPipeline": COGVIDEOX,
    "CogVideoXImageToVideoPipeline": COGVIDEOX,
    "CogVideoXVideoToVideoPipeline": COGVIDEOX,
    "WanPipeline": WAN,
    "WanImageToVideoPipeline": WAN,
    "WanVideoToVideoPipeline": WAN,
}
"""Pipelines that can be converted, by the class name in `model_index.json`."""
