"""The rules of the families; `test_trajectories.py` runs them against diffusers."""

import numpy as np
import pytest

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.description import describe as describe_cogvideox
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
)
from sixbit_jax.pipelines.pictures import PictureError
from sixbit_jax.pipelines.settings import resolve
from sixbit_jax.sampling.noise import initial_noise
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.families import FAMILIES
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
