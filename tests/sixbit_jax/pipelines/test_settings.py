"""What is not given is published; what cannot be done is refused with the nearest."""

import pytest

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.network import WanTransformer
from sixbit_jax.pipelines.settings import resolve, with_vae


def of(model, config, **given):
    return resolve(model.describe(config), config, **given)


def test_defaults_are_those_of_the_published_pipelines():
    cog = of(CogVideoXTransformer, CogVideoXConfig())
    assert (cog.frames, cog.height, cog.width) == (49, 480, 720)
    assert (cog.num_steps, cog.guidance_scale, cog.fps) == (50, 6.0, 8)
    assert cog.latent_shape == (13, 16, 60, 90)
    wan = of(WanTransformer, WanConfig())
    assert (wan.frames, wan.height, wan.width, wan.fps) == (81, 480, 832, 16)
    assert wan.latent_shape == (21, 16, 60, 104)
    assert wan.guidance_scale == 5.0


def test_sizes_that_cannot_be_made_name_the_nearest_that_can():
    with pytest.raises(ValueError) as caught:
        of(WanTransformer, WanConfig(), frames=80, height=481, width=840, num_steps=0)
    message = str(caught.value)
    assert "num_steps: expected 1 to 1000, found 0" in message
    assert "frames: expected 4 n + 1, found 80; the nearest is 81" in message
    assert "multiples of 16 pixels, found 840x481; the nearest is 832x480" in message


@pytest.mark.parametrize(
    ("option", "value"),
    [("frames", 0), ("guidance_scale", float("nan")), ("fps", 0), ("num_steps", 10**9)],
)
def test_absurd_numbers_are_refused(option, value):
    with pytest.raises(ValueError, match=option):
        of(WanTransformer, WanConfig(), **{option: value})


def test_guidance_of_one_or_less_is_none():
    assert not of(WanTransformer, WanConfig(), guidance_scale=1.0).guided
    assert not of(WanTransformer, WanConfig(), guidance_scale=0.5).guided
    assert of(WanTransformer, WanConfig(), guidance_scale=1.5).guided


def test_the_vae_decides_the_compression_and_must_have_the_channels():
    found = WanTransformer.describe(WanConfig())
    changed = with_vae(found, spatial=16, temporal=4, channels=16)
    assert changed.latent_shape(5, 64, 64) == (2, 16, 4, 4)
    with pytest.raises(ValueError, match=r"16 channels.*found 48"):
        with_vae(found, spatial=16, temporal=4, channels=48)
