"""The Wan autoencoder against diffusers', and as a stream."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.vae.tiling import Tiling
from sixbit_jax.vae.wan import decode_stream, encode
from tests.golden import vae_wan_cases as cases
from tests.sixbit_jax.vae.wan_models import model_of, relative


def _tiling(case) -> Tiling | None:
    if case.tiling is None:
        return None
    names = ("min_height", "min_width", "stride_height", "stride_width")
    return Tiling(*(case.tiling[f"tile_sample_{name}"] for name in names))


def _decoded(model, latents, **options) -> np.ndarray:
    # One latent frame at a time: all lengths of a network are one program.
    parts = decode_stream(model, latents, dtype=jnp.float32, chunk=1, **options)
    return np.concatenate([*map(np.asarray, parts)], 1)


@pytest.mark.parametrize("name", cases.names("decode"))
def test_frames_are_those_of_diffusers(name):
    case = cases.load(name)
    found = _decoded(model_of(case), case.inputs(), tiling=_tiling(case))
    assert found.shape == case.output_shape
    assert relative(cases.sample(found), case.values) < 1e-5


@pytest.mark.parametrize("name", cases.names("encode"))
def test_latents_are_those_of_diffusers(name):
    case = cases.load(name)
    both = encode(model_of(case), case.inputs(), tiling=_tiling(case), chunk=1)
    found = np.concatenate([*map(np.asarray, both)], 2)
    assert found.shape == case.output_shape
    assert relative(cases.sample(found), case.values) < 1e-5
