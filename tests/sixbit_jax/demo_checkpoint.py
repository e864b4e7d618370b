"""A tiny untrained model of the demo's kind, as a diffusers checkpoint."""

from pathlib import Path

from flax import nnx

from sixbit_jax.demo.export import write_checkpoint
from sixbit_jax.demo.model import model_config
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer

OVERRIDES = {"num_attention_heads": 2, "num_layers": 2, "patch_size": 8}


def write_tiny_checkpoint(path: Path, **changes: int) -> Path:
    """Two blocks of width 128 on 13 x 4 x 4 tokens, random weights."""
    overrides = OVERRIDES | changes
    config = CogVideoXConfig.from_dict({**model_config(), **overrides})
    model = CogVideoXTransformer(config, rngs=nnx.Rngs(0))
    write_checkpoint(nnx.state(model), path, overrides=overrides)
    return path
