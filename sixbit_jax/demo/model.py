"""The demo network: a small CogVideoX transformer that works on pixels."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from sixbit_jax.demo import data, text, vocabulary
from sixbit_jax.models.cogvideox import CogVideoXTransformer
from sixbit_jax.models.cogvideox_config import CogVideoXConfig
from sixbit_jax.sampling.schedulers import Scheduler, from_config

DIFFUSERS_VERSION = "0.42.0"
LATENT_SHAPE = (data.FRAMES, 3, data.SIZE, data.SIZE)


def model_config() -> dict[str, Any]:
    """The network's diffusers `config.json`."""
    return {
        "_class_name": CogVideoXTransformer.class_name,
        "_diffusers_version": DIFFUSERS_VERSION,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 64,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "max_text_seq_length": vocabulary.MAX_WORDS,
        "norm_elementwise_affine": True,
        "norm_eps": 1e-5,
        "num_attention_heads": 4,
        "num_layers": 8,
        "ofs_embed_dim": None,
        "out_channels": 3,
        "patch_bias": True,
        "patch_size": 4,
        "patch_size_t": None,
        "sample_frames": data.FRAMES,
        "sample_height": data.SIZE,
        "sample_width": data.SIZE,
        "spatial_interpolation_scale": 1.875,
        "temporal_compression_ratio": 1,
        "temporal_interpolation_scale": 1.0,
        "text_embed_dim": text.TEXT_DIM,
        "time_embed_dim": 128,
        "timestep_activation_fn": "silu",
        "use_learned_positional_embeddings": False,
        "use_rotary_positional_embeddings": True,
    }


def scheduler_config() -> dict[str, Any]:
    """The diffusers `scheduler_config.json`; the values of CogVideoX-5b."""
    return {
        "_class_name": "CogVideoXDDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "snr_shift_scale": 1.0,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    }


def demo_scheduler() -> Scheduler:
    """The scheduler that the demo model is trained and sampled with."""
    return from_config(scheduler_config())


def new_model(
    seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> CogVideoXTransformer:
    """An untrained network, initialized for training.

    Modulations and the output projection start at zero, so that every block is the
    identity and the first prediction is 0 (adaLN-Zero, arXiv 2212.09748, section 3.2);
    the other weights are Xavier uniform.

    Args:
        seed: of the weights.
        overrides: entries of `model_config` to replace, for smaller networks.

    Returns:
        The network, float32.
    """
    config = CogVideoXConfig.from_dict({**model_config(), **(overrides or {})})
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graph, _initial_state(shapes, jax.random.key(seed)))


def parameter_name(path: tuple[Any, ...]) -> str:
    """A parameter's path in the module tree as a dotted name."""
    return ".".join(str(part) for part in path)


def _initial_state(shapes: nnx.State, key: Key[Array, ""]) -> nnx.State:
    flat = nnx.to_flat_state(shapes)

    @jax.jit
    def make(key: Key[Array, ""]) -> list[Array]:
        # One program for all parameters: op by op this takes half a minute.
        return [
            _initial(key, parameter_name(path), variable.get_value())
            for path, variable in flat
        ]

    leaves = [
        (path, variable.replace(value))
        for (path, variable), value in zip(flat, make(key), strict=True)
    ]
    return nnx.from_flat_state(leaves)


def _initial(
    key: Key[Array, ""], name: str, like: jax.ShapeDtypeStruct
) -> Float[Array, "..."]:
    modulation = name.endswith(
        ("norm1.linear.weight", "norm2.linear.weight", "norm_out.linear.weight")
    )
    if modulation or name == "proj_out.weight" or name.endswith(".bias"):
        return jnp.zeros(like.shape, like.dtype)
    stacked = name.startswith("transformer_blocks.")
    shape = like.shape[1:] if stacked else like.shape
    if len(shape) < 2:
        return jnp.ones(like.shape, like.dtype)
    bound = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
    # Named, not numbered: a renamed sibling does not change the others' values.
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.random.uniform(key, like.shape, like.dtype, -bound, bound)
