"""Image conditions of Wan and the pair of networks, against the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.measured import NO_CHANGE
from sixbit_jax.quantizers.nvfp4 import quantize
from sixbit_jax.sampling.api import prepare, run_jitted
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.options import Conditions, Execution, Prompt
from sixbit_jax.sampling.pair import LowNoise, switch_step
from sixbit_jax.sampling.schedulers import FlowMatchEuler, UniPC
from tests.sixbit_jax.models.small_wan import small_model

SHAPE = (3, 4, 4, 4)
STEPS = 4


@pytest.fixture(scope="module")
def text():
    return jax.random.normal(jax.random.key(1), (2, 1, 5, 32))


@pytest.fixture(scope="module")
def noise():
    return jax.random.normal(jax.random.key(2), (1, *SHAPE))


def _options(noise):
    return {
        "latent_shape": SHAPE,
        "num_steps": STEPS,
        "guidance": 5.0,
        "noise": noise,
        "execution": Execution(dtype=jnp.float32, kernels=False),
    }


def _prompt(text):
    return Prompt(text[0], text[1], as_given=True)


def _plain_loop(scheduler, noise, predict):
    """`predict(number, sample, timestep)` gives the guided output."""
    sample, state = noise, scheduler.init(STEPS, noise.shape)
    for index, timestep in enumerate(scheduler.timesteps(STEPS)):
        output = predict(index, sample, float(timestep))
        sample, state = scheduler.step(state, index, output, sample, None)
    return sample


def test_image_tokens_and_image_latents(text, noise):
    model = small_model(
        num_layers=1, in_channels=9, image_dim=24, added_kv_proj_dim=128
    )
    image = jax.random.normal(jax.random.key(3), (1, 6, 24))
    latents = jax.random.normal(jax.random.key(4), (1, 3, 5, 4, 4))
    scheduler = UniPC()
    result = sixbit_jax.sample(
        model,
        scheduler,
        _prompt(text),
        conditions=Conditions(image_embeds=image, image_latents=latents),
        **_options(noise),
    )
    forward = jax.jit(lambda x, words, time: model(x, words, time, image=image))

    def predict(index, sample, timestep):
        x, time = jnp.concatenate([sample, latents], 2), jnp.full((1,), timestep)
        return guide(forward(x, text[0], time), forward(x, text[1], time), 5.0)

    expected = _plain_loop(scheduler, noise, predict)
    np.testing.assert_allclose(result.latents, expected, rtol=1e-4, atol=1e-4)


def test_given_first_frames_are_at_timestep_zero_in_every_step(text, noise):
    model = small_model(num_layers=1)
    frames = jax.random.normal(jax.random.key(3), (1, 1, 4, 4, 4))
    scheduler = FlowMatchEuler(shift=5.0)
    result = sixbit_jax.sample(
        model,
        scheduler,
        _prompt(text),
        conditions=Conditions(first_frames=frames),
        **_options(noise),
    )
    forward = jax.jit(lambda x, words, time: model(x, words, time))

    def given(sample):
        return jnp.concatenate([frames, sample[:, 1:]], 1)

    def predict(index, sample, timestep):
        # One timestep per token, as the original does it: 2 x 2 tokens per frame.
        time = jnp.full((1, 3, 4), timestep).at[:, 0].set(0.0).reshape(1, 12)
        x = given(sample)
        return guide(forward(x, text[0], time), forward(x, text[1], time), 5.0)

    expected = given(_plain_loop(scheduler, noise, predict))
    np.testing.assert_allclose(result.latents, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.latents[:, :1], frames)


@pytest.fixture(scope="module")
def pair():
    return small_model(0, num_layers=2), small_model(1, num_layers=2)


def test_a_pair_changes_networks_and_guidance_at_the_boundary(text, noise, pair):
    scheduler = UniPC()
    low = LowNoise(pair[1], boundary=0.875, guidance_scale=3.0)
    first = switch_step(scheduler, STEPS, low.boundary)
    assert 0 < first < STEPS
    result = sixbit_jax.sample(
        pair[0],
        scheduler,
        _prompt(text),
        conditions=Conditions(low_noise=low),
        **_options(noise),
    )
    forward = [jax.jit(lambda x, w, t, m=model: m(x, w, t)) for model in pair]

    def predict(index, sample, timestep):
        run, scale = (forward[0], 5.0) if timestep >= 875 else (forward[1], 3.0)
        time = jnp.full((1,), timestep)
        return guide(run(sample, text[0], time), run(sample, text[1], time), scale)

    expected = _plain_loop(scheduler, noise, predict)
    np.testing.assert_allclose(result.latents, expected, rtol=1e-4, atol=1e-4)
    assert result.trace.skip.shape == (STEPS, 2, 2)
    assert result.trace.output_change[first] == np.float32(NO_CHANGE)
    assert 0 < result.trace.output_change[first - 1] < 10


def test_the_second_network_starts_without_a_cache(text, noise, pair):
    scheduler = UniPC()
    low = LowNoise(pair[1])
    first = switch_step(scheduler, STEPS, low.boundary)
    result = sixbit_jax.sample(
        pair[0],
        scheduler,
        _prompt(text),
        conditions=Conditions(low_noise=low),
        policy=sixbit_jax.fixed(skip=[False, True, True, True]),
        **_options(noise),
    )
    assert first == 2
    skips = np.asarray(result.trace.skip).reshape(STEPS, -1)
    np.testing.assert_array_equal(skips.all(1), [False, True, False, True])
    assert not skips[first].any()
    assert (result.trace.delta_change[first] == np.float32(NO_CHANGE)).all()
    assert np.isfinite(result.latents).all()


def test_a_pair_of_which_one_never_runs_is_the_other(text, noise, pair):
    options = _options(noise)
    alone = sixbit_jax.sample(pair[0], UniPC(), _prompt(text), **options)
    for boundary, both in ((0.0, pair), (1.0, pair[::-1])):
        low = LowNoise(both[1], boundary=boundary)
        result = sixbit_jax.sample(
            both[0],
            UniPC(),
            _prompt(text),
            conditions=Conditions(low_noise=low),
            **options,
        )
        np.testing.assert_array_equal(result.latents, alone.latents)


def test_both_networks_are_used_where_they_lie(text, noise, pair):
    """Temporaries of a pair are those of one network, not a copy of the weights."""
    options = _options(noise)

    def temporaries(**more):
        found = prepare(pair[0], UniPC(), _prompt(text), **options, **more)
        return run_jitted.lower(*found).compile().memory_analysis().temp_size_in_bytes

    one, two = (
        temporaries(),
        temporaries(conditions=Conditions(low_noise=LowNoise(pair[1]))),
    )
    leaves = jax.tree.leaves(prepare(pair[0], UniPC(), _prompt(text), **options)[2])
    weights = sum(leaf.nbytes for leaf in leaves)
    assert two - one < 0.3 * weights


def test_what_does_not_fit_is_all_named(text, noise, pair):
    options = _options(noise)
    with pytest.raises(ValueError, match="image_embeds: expected none") as error:
        sixbit_jax.sample(
            pair[0],
            UniPC(),
            _prompt(text),
            conditions=Conditions(
                image_embeds=jnp.zeros((1, 6, 24)),
                first_frames=jnp.zeros((1, 3, 4, 4, 4)),
            ),
            **options,
        )
    assert "F a multiple of 1 below 3, found (1, 3, 4, 4, 4)" in str(error.value)
    image = small_model(num_layers=1, image_dim=24, added_kv_proj_dim=128)
    with pytest.raises(ValueError, match=r"expected \[1, I, 24\], found none"):
        sixbit_jax.sample(image, UniPC(), _prompt(text), **options)
    low = LowNoise(quantize(pair[1]))
    with pytest.raises(ValueError, match="stored as those of the first"):
        sixbit_jax.sample(
            pair[0],
            UniPC(),
            _prompt(text),
            conditions=Conditions(low_noise=low),
            **options,
        )
    with pytest.raises(ValueError, match="expected the first network's config"):
        sixbit_jax.sample(
            pair[0],
            UniPC(),
            _prompt(text),
            conditions=Conditions(low_noise=LowNoise(image)),
            **options,
        )
    with pytest.raises(ValueError, match="boundary: expected 0 to 1, found 900"):
        LowNoise(pair[1], boundary=900)
