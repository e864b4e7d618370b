"""The demo network: a small CogVideoX transformer that works on pixels.

`DemoModel` is what training, export and evaluation know of a network, so that others
(`sixbit_jax.demo.wan`) are trained by the same recipe on the same videos.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from sixbit_jax.demo import data, text, vocabulary
from sixbit_jax.demo.recipe import Recipe
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
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
    return COGVIDEOX.scheduler()


@dataclass(frozen=True)
class DemoModel:
    """A small network and how it is trained, sampled and stored.

    Attributes:
        name: on the command line.
        model_class: the model class of the network.
        pipeline: diffusers' pipeline class, for `model_index.json`.
        config: makes the network's diffusers `config.json`.
        scheduler_config: makes the diffusers `scheduler_config.json`.
        renamed: parts of parameter names and what diffusers calls them.
        zero: ends of the names of matrices that start at zero.
        recipe: numbers of the training run.
        guidance_scale: the guidance scale of evaluations.
    """

    name: str
    model_class: type
    pipeline: str
    config: Callable[[], dict[str, Any]]
    scheduler_config: Callable[[], dict[str, Any]]
    renamed: tuple[tuple[str, str], ...]
    zero: tuple[str, ...]
    recipe: Recipe
    guidance_scale: float

    @property
    def stem(self) -> str:
        """What the names of the blocks' parameters start with."""
        return f"{self.model_class.stack_names[0]}."

    def scheduler(self) -> Scheduler:
        """The scheduler that the network is trained and sampled with."""
        return from_config(self.scheduler_config())

    def new(self, seed: int = 0, overrides: Mapping[str, Any] | None = None) -> Any:
        """An untrained network, initialized for training.

        Gates, modulations and the output projection start at zero, so that every block
        is the identity and the first prediction is 0 (adaLN-Zero, arXiv 2212.09748,
        section 3.2); the other weights are Xavier uniform.

        Args:
            seed: the seed of the weights.
            overrides: entries of `config` to replace, for smaller networks.

        Returns:
            The network, float32.
        """
        values = {**self.config(), **(overrides or {})}
        config = self.model_class.config_class.from_dict(values)
        graph, shapes = nnx.split(
            nnx.eval_shape(lambda: self.model_class(config, rngs=nnx.Rngs(0)))
        )
        return nnx.merge(graph, self._initial_state(shapes, jax.random.key(seed)))

    def _initial_state(self, shapes: nnx.State, key: Key[Array, ""]) -> nnx.State:
        flat = nnx.to_flat_state(shapes)

        @jax.jit
        def make(key: Key[Array, ""]) -> list[Array]:
            # One program for all parameters: op by op this takes half a minute.
            return [
                self._initial(key, parameter_name(path), variable.get_value())
                for path, variable in flat
            ]

        leaves = [
            (path, variable.replace(value))
            for (path, variable), value in zip(flat, make(key), strict=True)
        ]
        return nnx.from_flat_state(leaves)

    def _initial(
        self, key: Key[Array, ""], name: str, like: jax.ShapeDtypeStruct
    ) -> Float[Array, "..."]:
        if name.endswith((*self.zero, ".bias")):
            return jnp.zeros(like.shape, like.dtype)
        shape = like.shape[1:] if name.startswith(self.stem) else like.shape
        if len(shape) < 2:
            return jnp.ones(like.shape, like.dtype)
        bound = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
        # Named, not numbered: a renamed sibling does not change the others' values.
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return jax.random.uniform(key, like.shape, like.dtype, -bound, bound)


COGVIDEOX = DemoModel(
    name="cogvideox",
    model_class=CogVideoXTransformer,
    pipeline="CogVideoXPipeline",
    config=model_config,
    scheduler_config=scheduler_config,
    renamed=(
        (".attn1.to_out.", ".attn1.to_out.0."),
        (".ff.up.", ".ff.net.0.proj."),
        (".ff.down.", ".ff.net.2."),
    ),
    zero=(
        "norm1.linear.weight",
        "norm2.linear.weight",
        "norm_out.linear.weight",
        "proj_out.weight",
    ),
    recipe=Recipe(),
    guidance_scale=6.0,
)


def parameter_name(path: tuple[Any, ...]) -> str:
    """A parameter's path in the module tree as a dotted name."""
    return ".".join(str(part) for part in path)
