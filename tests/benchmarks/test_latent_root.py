"""The small pipeline as a diffusers root: complete, small, and what was trained."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import latent_root
from convert.root import convert_root
from sixbit_jax.checkpoint import load
from sixbit_jax.demo.latent import loop, parts, vae
from sixbit_jax.pipelines.pipeline import load_pipeline

AUTOENCODER = Path(__file__).parents[2] / "benchmarks" / "data" / "latent_vae"


def test_weights_are_stored_in_files_of_limited_size(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loop, "MAX_BYTES", 3000)
    tree = {"a": jnp.arange(2000.0).reshape(2, 1000) / 7, "b": jnp.ones((5,))}
    loop.save_weights(tmp_path, tree)
    assert len(list(tmp_path.glob("weights-*.npy"))) == 3
    found = loop.load_weights(tmp_path, tree)
    for name, value in tree.items():
        rounded = value.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(found[name], rounded)
    with pytest.raises(ValueError, match="expected the 6 parameters"):
        loop.load_weights(tmp_path, {"b": jnp.ones((6,))})


@pytest.mark.slow
def test_a_root_holds_what_was_trained(tmp_path: Path):
    _, params = parts.new_params(3)
    loop.save_weights(tmp_path / "weights", params)
    root = tmp_path / "root"
    latent_root.write_root(root, AUTOENCODER, tmp_path / "weights")
    sizes = [file.stat().st_size for file in root.rglob("*") if file.is_file()]
    assert sum(sizes) < 30e6
    assert max(sizes) < 20 * 2**20
    convert_root(root, tmp_path / "made")
    expected = {
        "transformer": params["transformer"],
        "text_encoder": params["text"],
        "vae": loop.load_weights(AUTOENCODER, nnx.state(vae.new())),
    }
    for name, state in expected.items():
        model, _ = load(tmp_path / "made" / name)
        mine = jax.tree.leaves(state)
        theirs = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            rounded = a.astype(jnp.bfloat16).astype(jnp.float32)
            np.testing.assert_array_equal(rounded, b.astype(jnp.float32))
    pipe = load_pipeline(tmp_path / "made")
    settings = pipe.settings()
    assert settings.latent_shape == parts.LATENT_SHAPE
    assert (settings.frames, settings.height, settings.width) == (25, 128, 128)
    # Tokens of a pixel of latents each.
    frames, _, height, width = settings.latent_shape
    assert frames * height * width == 1792
