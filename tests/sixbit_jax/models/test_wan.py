"""The Wan port against diffusers, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.models import registry
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.network import WanTransformer
from tests.golden import wan_cases
from tests.sixbit_jax.models.small_wan import (
    small_config,
    small_model,
    with_diffusers_weights,
)


def relative_l2(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def golden_model(case: wan_cases.WanCase) -> WanTransformer:
    config = WanConfig.from_dict(case.config)
    model = WanTransformer(config, rngs=nnx.Rngs(0))
    return with_diffusers_weights(model, case.weights())


@nnx.jit(static_argnames="clean_frames")
def forward(model, latents, text, timestep, image=None, clean_frames=0):
    return model(latents, text, timestep, image=image, clean_frames=clean_frames)


@pytest.mark.parametrize("name", wan_cases.names())
def test_float32_output_equals_diffusers(name):
    case = wan_cases.load(name)
    given = case.inputs()
    output = forward(
        golden_model(case), given.latents, given.text, given.timestep, given.image
    )
    assert relative_l2(output, case.output) < 1e-5


def test_golden_cases_cover_every_variant():
    seen = {name.rsplit("_f", 1)[0] for name in wan_cases.names()}
    variants = {"t2v", "t2v_128", "i2v_21", "i2v_22", "flf2v", "ti2v", "plain_norm"}
    assert seen == variants


def test_a_clean_first_frame_equals_a_timestep_per_token():
    case = wan_cases.load("ti2v_f3_8x6_t9_tokens")
    given = case.inputs()
    output = forward(
        golden_model(case),
        given.latents,
        given.text,
        given.timestep[:, -1],
        clean_frames=1,
    )
    assert relative_l2(output, case.output) < 1e-5


def test_keys_and_values_made_once_give_the_same_output():
    case = wan_cases.load("i2v_21_f3_8x6_t512_rows")
    given = case.inputs()
    model = golden_model(case)
    prompt = nnx.jit(lambda m, *args: m.text_keys_values(*args))(
        model, given.text, given.image
    )
    assert prompt.key.shape == (2, 2, 512, 128)
    assert prompt.image_value.shape == (2, 2, 5, 128)
    output = forward(model, given.latents, prompt, given.timestep)
    assert relative_l2(output, case.output) < 1e-5


def test_parameter_counts_of_the_published_models():
    """Counts of the published checkpoints; nothing is allocated."""
    published = {
        1_418_996_800: {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
        14_288_491_584: {},
        4_999_787_712: {
            "num_attention_heads": 24,
            "num_layers": 30,
            "ffn_dim": 14336,
            "in_channels": 48,
            "out_channels": 48,
        },
    }
    for count, values in published.items():
        config = WanConfig(**values)
        model = nnx.eval_shape(
            lambda config=config: WanTransformer(config, rngs=nnx.Rngs(0))
        )
        leaves = nnx.to_flat_state(nnx.state(model)).leaves
        assert sum(np.prod(leaf.shape, dtype=int) for leaf in leaves) == count


def test_site_macs_count_the_weights_of_the_sites():
    model = nnx.eval_shape(lambda: WanTransformer(small_config(), rngs=nnx.Rngs(0)))
    d, hidden = 128, 256
    expected = [3 * d * d, d * d, d * d, d * d, d * hidden, hidden * d]
    (stack,) = model.stacks
    assert (stack.num_blocks, list(stack.macs)) == (3, expected)
    weights = {
        ".".join(map(str, path)): leaf
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }
    of_sites = [
        leaf.get_value().size
        for name, leaf in weights.items()
        if model.weight_role(name) == "site"
    ]
    assert sum(of_sites) == sum(stack.macs) * stack.num_blocks
    small = {n for n in weights if model.weight_role(n) == "small_batch"}
    assert small == {
        "blocks.attn2.to_k.weight",
        "blocks.attn2.to_v.weight",
        "condition_embedder.text_embedder.linear_1.weight",
        "condition_embedder.text_embedder.linear_2.weight",
        "condition_embedder.time_proj.weight",
    }


def test_bf16_stays_close_to_float32():
    model = small_model()
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 2, 4, 4, 4), np.float32)
    text = rng.standard_normal((1, 3, 32), np.float32)
    time = jnp.full((1,), 500.0)
    exact = forward(model, latents, text, time)
    low = forward(model, latents.astype(jnp.bfloat16), text, time)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low.astype(jnp.float32), exact) < 0.05


def test_config_round_trips_and_ignores_private_keys():
    config = small_config(image_dim=48, added_kv_proj_dim=128)
    values = config.to_dict() | {"_class_name": "x", "add_img_emb": False}
    assert WanConfig.from_dict(values) == config
    assert WanConfig.from_dict({"out_channels": None}).out_channels == 16


def test_config_lists_every_problem_at_once():
    with pytest.raises(ValueError) as error:
        WanConfig.from_dict({"qk_norm": "layer", "wings": 2})
    assert "rms_norm_across_heads" in str(error.value)
    assert "wings" in str(error.value)
    with pytest.raises(ValueError) as error:
        WanConfig(num_layers=0, image_dim=8, patch_size=(1, 0, 2))
    for part in ("num_layers", "expected both or neither", "(1, 0, 2)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="expected the width 5120, found 64"):
        WanConfig(image_dim=8, added_kv_proj_dim=64)


def test_latents_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"3 frames of 7x8.*multiples of 1.*2x2"):
        small_config().token_grid(3, 7, 8)
    with pytest.raises(ValueError, match=r"at most 4 tokens .* found 8"):
        small_config(rope_max_seq_len=4).token_grid(3, 4, 16)


def test_image_embeddings_and_the_model_must_agree():
    image = np.zeros((1, 5, 48), "f")
    text = np.zeros((1, 3, 32), "f")
    with pytest.raises(ValueError, match=r"takes no image .* \(1, 5, 48\)"):
        small_model(num_layers=1).text_keys_values(text, image)
    taking = small_model(num_layers=1, image_dim=48, added_kv_proj_dim=128)
    with pytest.raises(ValueError, match=r"takes image .* found none"):
        taking.text_keys_values(text)


def test_timesteps_that_do_not_fit_the_tokens_are_refused():
    model = small_model(num_layers=1)
    latents, text = np.zeros((1, 2, 4, 4, 4), "f"), np.zeros((1, 3, 32), "f")
    with pytest.raises(ValueError, match=r"each of 8 tokens, found \(1, 7\)"):
        model(latents, text, np.zeros((1, 7), "f"))
    with pytest.raises(ValueError, match="clean_frames: expected whole tokens"):
        model(latents, text, np.zeros((1, 8), "f"), clean_frames=1)


def test_registry_knows_the_class():
    assert registry.get("WanTransformer3DModel") == (WanConfig, WanTransformer)
