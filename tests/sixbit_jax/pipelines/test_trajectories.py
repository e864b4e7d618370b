"""Prompt to pixels against diffusers' own pipelines, converted from roots on disk."""

import jax.numpy as jnp
import numpy as np
import pytest

from convert.root import convert_root
from sixbit_jax.pipelines.pipeline import load_pipeline
from sixbit_jax.pipelines.prompts import PromptEmbeds
from sixbit_jax.sampling.options import Noise
from tests.golden.image_pipeline_cases import IMAGE_CASES, picture
from tests.golden.pipeline_cases import (
    CASES,
    NEGATIVE,
    PROMPT,
    PipelineCase,
    write_root,
)


def made(case: PipelineCase, folder):
    """The case's root, converted."""
    convert_root(write_root(case, folder), folder / "converted")
    return load_pipeline(folder / "converted", dtype="float32")


ALL = CASES | IMAGE_CASES


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_video_is_that_of_the_published_pipeline(case, tmp_path):
    pipe, stored = made(case, tmp_path), case.stored()
    noise = stored["noise"]
    if not case.index["_class_name"].startswith("CogVideoX"):
        noise = np.moveaxis(noise, 2, 1)
    extra = pipe.description.extra_frames((case.frames - 1) // 4 + 1)
    pictures = ("image", "last_image")[: case.pictures]
    more: dict = {name: picture(f"{name} of {case.name}") for name in pictures}
    if pictures and case.index["_class_name"].startswith("CogVideoX"):
        shape = (1, 1, *noise.shape[2:])
        # diffusers has channels before frames there.
        drawn = case.picture_noise((1, shape[2], 1, *shape[3:]))
        more["picture_noise"] = np.moveaxis(drawn, 2, 1)
    prompt = PromptEmbeds(**case.embeds()) if case.words else PROMPT
    video = pipe(
        prompt,
        **more,
        negative_prompt=NEGATIVE,
        noise=Noise(
            jnp.asarray(noise),
            jnp.stack([case.step_noise(i, noise.shape) for i in range(case.steps)])
            if "DPM" in case.scheduler["_class_name"]
            else None,
        ),
        frames=case.frames,
        height=case.height,
        width=case.width,
        num_steps=case.steps,
        guidance_scale=case.guidance,
        **case.call,
    )
    assert video.frames.dtype == np.uint8
    assert noise.shape[1] == (case.frames - 1) // 4 + 1 + extra
    # Half a level is what rounding to bytes may take.
    error = np.abs(video.frames / 255.0 - stored["video"]).max()
    assert error < 0.5 / 255 + 1e-3
