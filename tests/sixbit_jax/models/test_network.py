"""What a network says of itself, and blocks that ask for their sites by name."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from sixbit_jax.measured import NO_LIMIT, NOT_MEASURED
from sixbit_jax.models.blocks import BlockControl, SiteRunner
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteOptions
from tests.sixbit_jax.models import small, small_wan


def cogvideox(**changes):
    return sixbit_jax.CogVideoXTransformer.describe(
        sixbit_jax.CogVideoXConfig(**changes)
    )


def wan(**changes):
    return sixbit_jax.WanTransformer.describe(sixbit_jax.WanConfig(**changes))


@pytest.mark.parametrize(
    ("description", "size", "shape"),
    [
        (cogvideox(), (None, None, None), (13, 16, 60, 90)),
        (cogvideox(patch_size_t=2), (81, 768, 1360), (21, 16, 96, 170)),
        (wan(), (None, None, None), (21, 16, 60, 104)),
        (wan(), (81, 720, 1280), (21, 16, 90, 160)),
        (wan(out_channels=48, in_channels=48), (None,) * 3, (31, 48, 44, 80)),
    ],
)
def test_latents_of_a_video_of_a_size(description, size, shape):
    assert description.latent_shape(*size) == shape


def test_sizes_that_no_latents_stand_for_are_all_named():
    with pytest.raises(ValueError) as error:
        wan().latent_shape(80, 481, 835)
    message = str(error.value)
    assert "frames: expected 4 n + 1, found 80 (next: 77)" in message
    assert "height: expected a multiple of 8 pixels, found 481" in message
    assert "width: expected a multiple of 8 pixels, found 835" in message
    with pytest.raises(ValueError, match=r"frames: expected .* found 0"):
        cogvideox().latent_shape(0)


def test_only_video_of_two_frames_a_token_has_frames_to_cut():
    assert [cogvideox(patch_size_t=2).extra_frames(n) for n in (20, 21)] == [0, 1]
    assert [cogvideox().extra_frames(n) for n in (12, 13)] == [0, 0]
    assert wan().extra_frames(21) == 0


@pytest.mark.parametrize(
    ("description", "height", "width", "scheduler"),
    [
        (wan(), 480, 832, sixbit_jax.UniPC(flow_shift=3.0)),
        (wan(), 720, 1280, sixbit_jax.UniPC(flow_shift=5.0)),
        (wan(out_channels=48), 704, 1280, sixbit_jax.UniPC(flow_shift=5.0)),
        (cogvideox(), 480, 720, sixbit_jax.CogVideoXDDIM(snr_shift_scale=3.0)),
        (
            cogvideox(use_rotary_positional_embeddings=True),
            480,
            720,
            sixbit_jax.CogVideoXDDIM(snr_shift_scale=1.0),
        ),
    ],
)
def test_the_default_scheduler_fits_network_and_size(
    description, height, width, scheduler
):
    config = description.defaults.scheduler_config(height, width)
    found = sixbit_jax.scheduler_from_config(config)
    assert found == scheduler
    assert found.prediction_type == description.prediction


def test_published_guidance_steps_and_inputs():
    assert (cogvideox().defaults.guidance_scale, wan().defaults.guidance_scale) == (
        6,
        5,
    )
    assert cogvideox().conditions.prompt.rule == "any"
    assert wan().conditions.prompt.rule == "zeros"
    assert cogvideox(ofs_embed_dim=512).conditions.ofs == 2.0
    assert cogvideox().conditions.ofs is None
    image = wan(in_channels=36, image_dim=1280, added_kv_proj_dim=5120).conditions
    assert (image.image_latent_channels, image.image_embeds_width) == (20, 1280)


@pytest.mark.parametrize("family", [small, small_wan])
def test_stacks_name_the_blocks_that_a_network_holds(family):
    model = family.small_model(num_layers=2)
    blocks = model.blocks_by_stack()
    assert tuple(blocks) == model.stack_names
    assert [stack.name for stack in model.stacks] == list(model.stack_names)
    for stack in model.stacks:
        leaves = nnx.to_flat_state(nnx.state(blocks[stack.name])).leaves
        lengths = {leaf.get_value().shape[0] for leaf in leaves}
        assert lengths == {stack.num_blocks}


def test_sites_are_asked_for_by_name_in_any_order():
    linear = Linear(16, 16, rngs=nnx.Rngs(0))
    options = SiteOptions(outlier_stats=True)
    control = BlockControl(
        jnp.zeros(2, jnp.int32), jnp.float32(NO_LIMIT), jnp.zeros((), bool)
    )
    site = SiteRunner(("first", "second"), control, options)
    x = jnp.ones((1, 2, 16))
    site("second", x, linear)
    site("first", x.at[0, 0, 0].set(17.0), linear)
    stats = site.stats()
    np.testing.assert_allclose(stats.outlier, [17.0 / 1.5, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(stats.error, [NOT_MEASURED, NOT_MEASURED])


def test_a_site_that_is_unknown_twice_or_left_out_is_named():
    linear, x = Linear(16, 16, rngs=nnx.Rngs(0)), jnp.ones((1, 2, 16))
    site = SiteRunner(("first", "second"), None, SiteOptions())
    with pytest.raises(ValueError, match="site 'third': expected each of first, sec"):
        site("third", x, linear)
    site("first", x, linear)
    with pytest.raises(ValueError, match=r"site 'first': .* after first"):
        site("first", x, linear)
    with pytest.raises(ValueError, match="found none of second"):
        site.stats()
