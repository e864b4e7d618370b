"""The HunyuanVideo port against diffusers, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.models import registry
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.network import HunyuanVideoTransformer
from sixbit_jax.models.network import PromptInputs
from tests.golden import hunyuan_video_cases as cases
from tests.sixbit_jax.models.small_hunyuan_video import (
    small_config,
    small_model,
    small_prompt,
    with_diffusers_weights,
)


def relative_l2(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def golden_model(case: cases.HunyuanVideoCase) -> HunyuanVideoTransformer:
    config = HunyuanVideoConfig.from_dict(case.config)
    model = HunyuanVideoTransformer(config, rngs=nnx.Rngs(0))
    return with_diffusers_weights(model, case.weights())


@nnx.jit
def forward(model, latents, text, mask, pooled, timestep, guidance=None):
    return model(latents, text, mask, pooled, timestep, guidance)


def arguments(given: cases.HunyuanVideoInputs) -> tuple:
    return (
        *(given.latents, given.text, given.mask, given.pooled),
        *(given.timestep, given.guidance),
    )


@pytest.mark.parametrize("name", cases.names())
def test_float32_output_equals_diffusers(name):
    case = cases.load(name)
    output = forward(golden_model(case), *arguments(case.inputs()))
    assert relative_l2(output, case.output) < 2e-5


def test_golden_cases_cover_every_variant():
    seen = {name.rsplit("_f", 1)[0] for name in cases.names()}
    assert seen == {
        *("t2v", "t2v_128", "no_guidance", "patch_t"),
        *("token_replace", "latent_concat"),
    }


def test_what_padding_holds_changes_nothing():
    case = cases.load("t2v_f3_8x12_t10")
    given = case.inputs()
    text = np.where(given.mask[..., None], given.text, 7.0)
    model = golden_model(case)
    found = forward(model, *arguments(given)[:1], text, *arguments(given)[2:])
    assert relative_l2(found, case.output) < 2e-5


def test_a_row_is_the_same_alone_and_without_its_padding():
    case = cases.load("t2v_f3_8x12_t10")
    latents, text, mask, pooled, time, guidance = arguments(case.inputs())
    length = case.text_lengths[1]
    found = forward(
        golden_model(case),
        *(latents[1:], text[1:, :length], mask[1:, :length], pooled[1:]),
        *(time[1:], guidance[1:]),
    )
    assert relative_l2(found, case.output[1:]) < 2e-5


def _flat(model) -> dict:
    return {
        ".".join(map(str, path)): leaf
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }


def test_parameters_of_the_published_model():
    """Counts of the published sizes; nothing is allocated."""
    model = nnx.eval_shape(
        lambda: HunyuanVideoTransformer(HunyuanVideoConfig(), rngs=nnx.Rngs(0))
    )
    leaves = nnx.to_flat_state(nnx.state(model)).leaves
    total = sum(np.prod(leaf.shape, dtype=int) for leaf in leaves)
    assert total == 12_821_012_544


def test_site_macs_count_the_weights_of_the_sites():
    model = nnx.eval_shape(
        lambda: HunyuanVideoTransformer(small_config(), rngs=nnx.Rngs(0))
    )
    dual, single = model.stacks
    weights = _flat(model)
    sites = {n: w.get_value().size for n, w in weights.items() if _role(n) == "site"}
    of_single = [size for name, size in sites.items() if name.startswith("single")]
    assert sum(of_single) == sum(single.macs) * single.num_blocks
    # Two streams of equal weights share the tokens of a block: half of the weights.
    of_dual = sum(sites.values()) - sum(of_single)
    assert sum(dual.macs) * dual.num_blocks == pytest.approx(of_dual / 2)
    text = sum(m for n, m in zip(dual.sites, dual.macs, strict=True) if "text" in n)
    assert text / sum(dual.macs) == pytest.approx(256 / 119_056)


def _role(name: str) -> str | None:
    return HunyuanVideoTransformer.weight_role(name)


def test_roles():
    model = nnx.eval_shape(
        lambda: HunyuanVideoTransformer(small_config(), rngs=nnx.Rngs(0))
    )
    names = {n.removesuffix(".weight") for n in _flat(model) if n.endswith(".weight")}
    plain = {name for name in names if _role(name + ".weight") is None}
    assert plain == {
        "x_embedder.proj",
        "proj_out",
        *(f"context_embedder.token_refiner.refiner_blocks.0.norm{i}" for i in (1, 2)),
        *(
            f"transformer_blocks.attn.norm_{kind}"
            for kind in ("q", "k", "added_q", "added_k")
        ),
        *(f"single_transformer_blocks.attn.norm_{kind}" for kind in "qk"),
    }
    small = {name for name in names if _role(name + ".weight") == "small_batch"}
    assert {name for name in small if "blocks" in name and "refiner" not in name} == {
        "transformer_blocks.norm1.linear",
        "transformer_blocks.norm1_context.linear",
        "single_transformer_blocks.norm.linear",
    }
    assert _role("transformer_blocks.ff.up.bias") is None


def test_bf16_stays_close_to_float32():
    model, prompt = small_model(), small_prompt()
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 2, 4, 4, 4), np.float32)
    time = jnp.full((1,), 500.0)
    rest = (*prompt, time, jnp.full((1,), 6.0))
    exact = forward(model, latents, *rest)
    low = forward(model, latents.astype(jnp.bfloat16), *rest)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low.astype(jnp.float32), exact) < 0.05


def test_config_round_trips():
    config = small_config(image_condition_type="token_replace")
    values = config.to_dict() | {"_class_name": "x"}
    assert HunyuanVideoConfig.from_dict(values) == config
    assert HunyuanVideoConfig.from_dict({"out_channels": None}).out_channels == 16
    assert HunyuanVideoConfig.from_dict({}) == HunyuanVideoConfig()


def test_config_lists_every_problem_at_once():
    with pytest.raises(ValueError) as error:
        HunyuanVideoConfig.from_dict({"qk_norm": "layer", "wings": 2})
    assert "rms_norm" in str(error.value)
    assert "wings" in str(error.value)
    with pytest.raises(ValueError) as error:
        HunyuanVideoConfig(
            num_layers=0,
            rope_axes_dim=(16, 56, 54),
            in_channels=20,
            image_condition_type="latent_concat",
        )
    for part in (
        "num_layers",
        "expected a sum of attention_head_dim 128",
        "expected 33",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="token_replace"):
        HunyuanVideoConfig(image_condition_type="swap")


def test_latents_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"3 frames of 7x8.*multiples of 1.*2x2"):
        small_config().token_grid(3, 7, 8)


def test_a_guidance_scale_and_the_model_must_agree():
    prompt, latents, time = small_prompt(), jnp.zeros((1, 1, 4, 4, 4)), jnp.ones(1)
    with pytest.raises(ValueError, match=r"reads a guidance scale.*found none"):
        small_model()(latents, *prompt, time)
    model = small_model(guidance_embeds=False)
    with pytest.raises(ValueError, match=r"reads no guidance scale.*found one"):
        model(latents, *prompt, time, jnp.ones(1))


def test_a_prompt_without_mask_or_pooled_embedding_is_refused():
    with pytest.raises(ValueError, match="expected mask and pooled, found none"):
        small_model().prepare_prompt(
            PromptInputs(small_prompt().embeds), dtype=jnp.float32
        )


def test_registry_knows_the_class():
    found = registry.get("HunyuanVideoTransformer3DModel")
    assert found == (HunyuanVideoConfig, HunyuanVideoTransformer)


def test_what_it_says_of_itself():
    description = HunyuanVideoTransformer.describe(HunyuanVideoConfig())
    spec = description.conditions
    assert description.latent_shape() == (33, 16, 90, 160)
    assert (spec.prompt.length, spec.prompt.pooled_width) == (256, 768)
    assert (spec.embedded_guidance, description.defaults.guidance_scale) == (6.0, 1.0)
    assert description.defaults.scheduler_config(720, 1280)["shift"] == 7.0
    i2v = HunyuanVideoConfig(in_channels=33, image_condition_type="latent_concat")
    spec = HunyuanVideoTransformer.describe(i2v).conditions
    assert (spec.image_latent_channels, spec.first_frames) == (17, 0)
    replaced = HunyuanVideoConfig(image_condition_type="token_replace")
    spec = HunyuanVideoTransformer.describe(replaced).conditions
    assert (spec.image_latent_channels, spec.first_frames) == (0, 1)
    assert spec.needs_first_frame
