"""Names that help texts need, without importing what they name."""

from pathlib import Path

BUNDLED = Path(__file__).parent.parent / "demo"
BUNDLED_CHECKPOINT = BUNDLED / "checkpoint"
BUNDLED_POLICY = BUNDLED / "policy.json"
BUNDLED_PIPELINE = BUNDLED / "pipeline"
PIPELINE_POLICY = "w4a8"
"""What `sixbit demo --prompt` puts beside full precision."""
PIPELINE_STEPS = 30
"""Denoising steps of `sixbit demo --prompt`, as its model was evaluated with."""
RECOMMENDED = "6bit"
RECIPES = ("sixbit-diffusion", "dvd-quant", "q-vdit", "mpq-dm-v2")
"""The keys of `recipes.RECIPES`."""
SCHEDULERS = ("ddim", "dpm", "unipc", "euler", "lcm")
"""The keys of `sampling.schedulers.choice.NAMES`."""
DEFAULT_CAPTIONS = (
    "a red circle moves left on a blue background",
    "a yellow triangle grows on a black background",
)
