"""What the published pipelines do to a prompt before it is tokenized."""

import html
import re

import ftfy

HUNYUAN_VIDEO_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the "
    "following aspects: 1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of "
    "the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes "
    "of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
HUNYUAN_VIDEO_CROP = 95
"""Leading rows that belong to the template, and are dropped after encoding."""


def clean_wan_prompt(prompt: str) -> str:
    """Wan's cleaning: mojibake repaired, HTML entities resolved, whitespace joined."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()
