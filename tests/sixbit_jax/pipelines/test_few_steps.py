"""The recipe of `docs/few-step.md`, from files to pixels, against loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from convert.conversion import convert
from convert.root import convert_root
from sixbit_jax.cli import main
from tests.convert.lora_files import low_rank, write
from tests.golden.wan_root_cases import network, write_diffusers_root

PROMPT = "a boat in the rain"
SIGMAS = (1.0, 0.75, 0.5, 0.25)
STRENGTH = 0.8
KEYS = [
    "blocks.0.attn1.to_q.weight",
    "blocks.1.attn2.to_v.weight",
    "blocks.1.ffn.net.0.proj.weight",
    "condition_embedder.time_proj.weight",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pipeline that the page makes, and a network that NumPy added the LoRA to."""
    folder = tmp_path_factory.mktemp("few")
    weights = network("2.1")
    root = write_diffusers_root(folder / "root", "2.1", {"transformer": weights}, False)
    tensors, gains = low_rank(weights, KEYS, "comfyui")
    lora = write(folder / "four-steps.safetensors", tensors)
    words = ["convert", str(root), str(folder / "wan-4"), "--lora"]
    assert main([*words, f"{lora}:{STRENGTH}"]) == 0
    summed = {
        key: (value + STRENGTH * gains.get(key, 0)).astype(np.float32)
        for key, value in weights.items()
    }
    other = write_diffusers_root(
        folder / "other", "2.1", {"transformer": summed}, False
    )
    convert(other / "transformer", folder / "summed")
    convert_root(root, folder / "plain")
    return folder


@pytest.mark.slow
def test_the_page_gives_the_steps_that_numpy_takes(made):
    noise = np.random.default_rng(0).standard_normal((1, 2, 16, 4, 4)).astype("f")
    size = {"frames": 5, "height": 32, "width": 32}
    options = {
        "scheduler": "euler",
        "shift": 5.0,
        "sigmas": SIGMAS,
        "guidance_scale": 1.0,
        "noise": jnp.asarray(noise),
    }
    pipe = sixbit_jax.load_pipeline(made / "wan-4")
    video = pipe(PROMPT, **size, **options)
    assert video.trace.skip.shape[:2] == (4, 1)
    # By hand: shifted levels, one call of the network per step, no guidance.
    levels = [5 * s / (1 + 4 * s) for s in SIGMAS]
    text = jnp.asarray(pipe.encode([PROMPT]).of(PROMPT).text[None], jnp.float32)
    model, _ = sixbit_jax.load(made / "summed", dtype=jnp.float32)
    x = noise.astype(np.float64)
    for now, after in zip(levels, [*levels[1:], 0.0], strict=True):
        time = jnp.array([1000 * now], jnp.float32)
        v = np.asarray(model(jnp.asarray(x, jnp.float32), text, time), np.float64)
        x = x + (after - now) * v
    settings = pipe.settings(**size, num_steps=4, guidance_scale=1.0)
    expected = np.asarray(pipe.decode(jnp.asarray(x, jnp.float32), settings))
    difference = np.abs(video.frames.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert expected.std() > 1
    # Without the LoRA it is another video.
    plain = sixbit_jax.load_pipeline(made / "plain")(PROMPT, **size, **options)
    assert np.abs(plain.frames.astype(int) - expected.astype(int)).max() > 10
