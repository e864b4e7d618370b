"""The rules of the families; `test_trajectories.py` runs them against diffusers."""

import numpy as np
import pytest

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.description import describe as describe_cogvideox
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.description import (
    describe as describe_hunyuan_video,
)
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.description import describe as describe_wan
from sixbit_jax.pipelines.header import PipelineHeader
from sixbit_jax.pipelines.image_to_video import (
    EncodedPictures,
    Pictures,
    check_pictures,
    conditions,
    picture_noise,
    picture_rule,
    started,
)
from sixbit_jax.pipelines.pictures import PictureError
from sixbit_jax.pipelines.settings import resolve
from sixbit_jax.sampling.noise import initial_noise
from sixbit_jax.sampling.options import Noise
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.families import FAMILIES
from sixbit_jax.vae.hunyuan_video_config import HunyuanVideoVAEConfig
from tests.golden.image_pipeline_cases import picture
from tests.golden.weights import random_array

COGVIDEOX = CogVideoXConfig(in_channels=32)


def rule(kind, description, **options):
    header = PipelineHeader(f"{kind}ImageToVideoPipeline", {}, options=options)
    return picture_rule(header, description)


@pytest.mark.parametrize(
    ("kind", "description", "options", "wanted"),
    [
        ("CogVideoX", describe_cogvideox(COGVIDEOX), {}, ("needed", "none")),
        ("CogVideoX", describe_cogvideox(CogVideoXConfig()), {}, None),
        ("Wan", describe_wan(WanConfig()), {}, None),
        (
            "Wan",
            describe_wan(
                WanConfig(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
            ),
            {},
            ("needed", "none"),
        ),
        (
            "Wan",
            describe_wan(
                WanConfig(
                    in_channels=36,
                    image_dim=1280,
                    added_kv_proj_dim=5120,
                    pos_embed_seq_len=514,
                )
            ),
            {},
            ("needed", "needed"),
        ),
        (
            "Wan",
            describe_wan(WanConfig(in_channels=36)),
            {"boundary_ratio": 0.9},
            ("needed", "optional"),
        ),
        (
            "Wan",
            describe_wan(WanConfig(in_channels=48, out_channels=48)),
            {"expand_timesteps": True},
            ("optional", "none"),
        ),
    ],
)
def test_each_family_says_which_pictures_it_takes(kind, description, options, wanted):
    found = rule(kind, description, **options)
    assert (None if found is None else (found.first, found.last)) == wanted
    first, last = wanted or ("none", "none")
    for given, fits in (
        (None, first != "needed"),
        (Pictures(picture("a")), first != "none" and last != "needed"),
        (Pictures(picture("a"), picture("b")), last != "none"),
    ):
        if fits:
            check_pictures("x", found, given)
        else:
            with pytest.raises(PictureError, match="image: expected"):
                check_pictures("x", found, given)


def test_input_channels_of_no_family_are_refused():
    with pytest.raises(ValueError, match="expected 16 or 36 input channels, found 32"):
        rule("Wan", describe_wan(WanConfig(in_channels=32)))


def test_noise_on_the_picture_is_that_of_the_seed_and_not_that_of_the_latents():
    description = describe_cogvideox(COGVIDEOX)
    shape = (1, 1, 16, 4, 6)
    settings = resolve(description, COGVIDEOX, frames=9, height=32, width=48)
    mean, logvar = random_array("mean", shape), random_array("logvar", shape)
    encoded = EncodedPictures(mean, logvar)
    found = rule("CogVideoX", description)
    assert found is not None

    def latents(**options):
        made = conditions(
            found,
            encoded,
            FAMILIES["AutoencoderKLCogVideoX"],
            CogVideoXVAEConfig(scaling_factor=0.7),
            description,
            settings,
            last=False,
            **options,
        )
        return np.asarray(made.image_latents)

    drawn = latents(seed=3)
    assert drawn.shape == (1, 3, 16, 4, 6)
    assert (drawn[:, 1:] == 0).all()
    noise = np.asarray(picture_noise(3, shape))
    wanted = 0.7 * (mean + np.exp(logvar / 2) * noise)
    np.testing.assert_allclose(drawn[:, :1], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(drawn, latents(seed=5, noise=noise))
    assert np.abs(drawn - latents(seed=4)).max() > 0.1
    assert np.abs(noise - np.asarray(initial_noise(3, shape))).max() > 0.1
    with pytest.raises(ValueError, match="picture_noise: expected"):
        latents(seed=0, noise=noise[:, :, :8])


@pytest.mark.parametrize("kind", ["token_replace", "latent_concat"])
def test_a_thousandth_of_the_picture_is_in_hunyuan_videos_noise(kind):
    channels = 33 if kind == "latent_concat" else 16
    config = HunyuanVideoConfig(image_condition_type=kind, in_channels=channels)
    found = rule("HunyuanVideo", describe_hunyuan_video(config))
    assert (found.first, found.last) == ("needed", "none")
    assert found.cut == (kind == "latent_concat")
    picture_latent = random_array("mean", (1, 1, 16, 4, 6))
    shape = (3, 16, 4, 6)
    vae = HunyuanVideoVAEConfig()
    encoded = EncodedPictures(picture_latent, picture_latent)
    made = found.conditions(
        encoded,
        FAMILIES["AutoencoderKLHunyuanVideo"],
        vae,
        shape,
        noise=None,
        last=False,
    )
    scaled = picture_latent * vae.scaling_factor
    if kind == "latent_concat":
        latents = np.asarray(made.image_latents)
        np.testing.assert_allclose(latents[:, :1, :16], scaled, rtol=1e-6)
        assert (latents[:, 0, 16] == 1).all()
        assert (latents[:, 1:] == 0).all()
    drawn = np.asarray(initial_noise(4, (1, *shape)))
    for noise in (None, drawn, Noise(drawn)):
        mixed = started(found, made, noise, seed=4, shape=shape)
        wanted = 0.999 * drawn + 0.001 * scaled
        np.testing.assert_allclose(mixed.initial, wanted, rtol=1e-5, atol=1e-6)
    assert started(None, made, None, seed=4, shape=shape) is None
