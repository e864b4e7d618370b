"""The port against diffusers, and what it refuses."""

import numpy as np
import pytest
from flax import nnx

from sixbit_jax.models import registry
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from tests.golden import cases
from tests.sixbit_jax.models.small import (
    small_config,
    small_model,
    with_diffusers_weights,
)


@pytest.mark.parametrize("name", cases.names())
def test_float32_output_equals_diffusers(name):
    case = cases.load(name)
    config = CogVideoXConfig.from_dict(case.config)
    model = CogVideoXTransformer(config, rngs=nnx.Rngs(0))
    with_diffusers_weights(model, case.weights())
    given = case.inputs()
    ofs = None if given.ofs is None else np.repeat(given.ofs, given.latents.shape[0])
    output = nnx.jit(lambda m, *args: m(*args))(
        model, given.latents, given.text, given.timestep.astype(np.float32), ofs
    )
    error = np.linalg.norm(output - case.output) / np.linalg.norm(case.output)
    # 3e-6 to 5e-6 measured; asked for: 2e-5.
    assert error < 1e-5


def test_golden_cases_cover_all_four_configurations():
    seen = {name.split("_f")[0] for name in cases.names()}
    assert {"2b", "5b", "5b_i2v", "1_5", "1_5_i2v"} <= seen


def test_parameter_counts_of_the_published_models():
    """Counts of the published checkpoints; nothing is allocated."""
    published = {
        1_693_783_872: CogVideoXConfig(num_attention_heads=30, num_layers=30),
        5_570_283_072: CogVideoXConfig(
            num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True
        ),
        5_570_676_352: CogVideoXConfig(
            num_attention_heads=48,
            num_layers=42,
            use_rotary_positional_embeddings=True,
            patch_size_t=2,
            patch_bias=False,
        ),
    }
    for count, config in published.items():
        model = nnx.eval_shape(
            lambda config=config: CogVideoXTransformer(config, rngs=nnx.Rngs(0))
        )
        leaves = nnx.to_flat_state(nnx.state(model)).leaves
        assert sum(np.prod(leaf.shape, dtype=int) for leaf in leaves) == count


def test_config_round_trips_and_ignores_private_keys():
    config = small_config(patch_size_t=2)
    values = config.to_dict() | {"_class_name": "x", "dropout": 0.0}
    assert CogVideoXConfig.from_dict(values) == config


def test_config_lists_every_problem_at_once():
    with pytest.raises(ValueError) as error:
        CogVideoXConfig.from_dict({"activation_fn": "relu", "wings": 2})
    assert "gelu-approximate" in str(error.value)
    assert "wings" in str(error.value)


def test_config_refuses_learned_positions_without_rotary():
    with pytest.raises(ValueError, match="use_learned_positional_embeddings"):
        CogVideoXConfig(use_learned_positional_embeddings=True)


def test_latents_that_do_not_fit_the_patches_are_refused():
    with pytest.raises(ValueError, match=r"3 frames of 7x8.*multiples of 1.*2"):
        small_config().token_grid(3, 7, 8)


def test_ofs_model_needs_ofs():
    model = small_model(ofs_embed_dim=32, time_embed_dim=32)
    text, latents = np.zeros((1, 6, 32), "f"), np.zeros((1, 3, 4, 8, 8), "f")
    with pytest.raises(ValueError, match="ofs"):
        model(latents, text, np.zeros(1, "f"))


def test_registry_names_the_known_classes():
    assert registry.get("CogVideoXTransformer3DModel")[1] is CogVideoXTransformer
    with pytest.raises(ValueError, match=r"CogVideoXTransformer3DModel.*'UNet'"):
        registry.get("UNet")
