"""No input means something else than it says; what does not fit is all named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax import Conditions, Execution, Guidance, LowNoise, Noise, Prompt
from sixbit_jax.sampling.api import prepare
from tests.sixbit_jax.models import small_wan
from tests.sixbit_jax.models.small import small_model

SHAPE = (3, 4, 8, 8)
EXECUTION = Execution(dtype=jnp.float32)
DDIM = sixbit_jax.CogVideoXDDIM()


def embeds(seed: int, length: int = 6):
    return jax.random.normal(jax.random.key(seed), (1, length, 32))


PROMPT = Prompt(embeds(1), embeds(9))


@pytest.fixture(scope="module")
def model():
    return small_model(num_layers=1)


@pytest.fixture(scope="module")
def wan():
    return small_wan.small_model(num_layers=1)


def prepared(model, scheduler=DDIM, prompt=PROMPT, **options):
    options = {"latent_shape": SHAPE, "num_steps": 3} | options
    return prepare(model, scheduler, prompt, execution=EXECUTION, **options)


def sampled(model, scheduler=DDIM, prompt=PROMPT, **options):
    options = {"latent_shape": SHAPE, "num_steps": 3} | options
    return sixbit_jax.sample(model, scheduler, prompt, execution=EXECUTION, **options)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("guidence", "unknown option 'guidence'; did you mean guidance"),
        ("latent_shap", "did you mean latent_shape"),
        ("negative_text_embeds", r"is now prompt=Prompt\(\.\.\., negative_embeds"),
        ("dtype", r"is now execution=Execution\(dtype="),
        ("low_nois", r"did you mean conditions=Conditions\(low_noise="),
        ("record_errors", "an option of `prepare`"),
    ],
)
def test_a_typo_names_the_option(model, name, meant):
    with pytest.raises(TypeError, match=meant):
        sampled(model, **{name: None})


def test_what_belongs_together_is_typed(model):
    with pytest.raises(TypeError, match=r"conditions: expected Conditions.*dict"):
        sampled(model, conditions={"ofs": 2.0})
    with pytest.raises(ValueError) as error:
        Execution(attention="fp8", cache_format="fp7", arq_block=0, dtype="int8")
    for part in ("attention", "'fp8'", "cache_format", "'fp7'", "arq_block", "dtype"):
        assert part in str(error.value)


@pytest.mark.parametrize("flow", [True, False])
def test_a_scheduler_for_another_prediction_is_refused(model, wan, flow):
    network, scheduler = (model, sixbit_jax.UniPC()) if flow else (wan, DDIM)
    with pytest.raises(ValueError) as error:
        prepared(network, scheduler)
    message = str(error.value)
    assert type(network).__name__ in message
    assert type(scheduler).__name__ in message
    assert "v_prediction" in message
    assert "flow_prediction" in message


def test_defaults_are_those_of_the_network(model, wan):
    shape = (3, 4, 4, 4)
    ours = prepare(model, DDIM, PROMPT, latent_shape=SHAPE)
    theirs = prepare(wan, sixbit_jax.UniPC(), PROMPT, latent_shape=shape)
    assert (ours.program.num_steps, theirs.program.num_steps) == (50, 50)
    np.testing.assert_array_equal(ours.inputs.guidance_scale, np.full(50, 6.0))
    np.testing.assert_array_equal(theirs.inputs.guidance_scale, np.full(50, 5.0))


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -3.0, 1])
def test_a_scale_of_one_or_less_is_no_guidance(model, scale):
    found = prepared(model, guidance=scale)
    assert not found.program.guided
    assert found.program.branches == 1
    assert found.inputs.text.shape == (1, 1, 6, 32)


def test_the_first_scale_decides_for_both_networks(wan):
    def of(first, second):
        low = LowNoise(wan, guidance_scale=second)
        return prepared(
            wan,
            sixbit_jax.UniPC(),
            latent_shape=(3, 4, 4, 4),
            guidance=first,
            conditions=Conditions(low_noise=low),
        )

    unguided = of(1.0, 4.0)
    assert not unguided.program.guided
    np.testing.assert_array_equal(unguided.inputs.guidance_scale, np.ones(3))
    guided = of(4.0, 1.0)
    assert guided.program.guided
    assert set(np.asarray(guided.inputs.guidance_scale)) == {4.0, 1.0}


def test_one_network_of_a_pair_alone_is_refused():
    half = small_wan.small_model(num_layers=1)
    half.pair_boundary = 0.875
    with pytest.raises(ValueError, match=r"pair that changes at 0\.875.*low_noise"):
        prepared(half, sixbit_jax.UniPC(), latent_shape=(3, 4, 4, 4))


def test_wan_prompts_are_padded_with_zeros_to_512_tokens(wan):
    options = {"latent_shape": (3, 4, 4, 4), "guidance": Guidance(3.0)}
    prompt = Prompt(embeds(1, 5), embeds(9, 7))
    text = prepared(wan, sixbit_jax.UniPC(), prompt, **options).inputs.text
    assert text.shape == (2, 1, 512, 32)
    np.testing.assert_array_equal(text[0, :, :5], prompt.embeds)
    np.testing.assert_array_equal(text[1, :, :7], prompt.negative_embeds)
    assert not text[0, :, 5:].any()
    assert not text[1, :, 7:].any()
    short = Prompt(embeds(1, 5), embeds(9, 5), as_given=True)
    text = prepared(wan, sixbit_jax.UniPC(), short, **options).inputs.text
    assert text.shape == (2, 1, 5, 32)
    with pytest.raises(ValueError, match=r"at most 512 tokens, found 513"):
        prepared(wan, sixbit_jax.UniPC(), Prompt(embeds(1, 513)), **options)


def test_cogvideox_with_learned_positions_takes_one_length_of_prompts():
    model = small_model(num_layers=1, use_learned_positional_embeddings=True)
    with pytest.raises(ValueError, match="embeds: expected 6 tokens, found 5"):
        prepared(model, prompt=Prompt(embeds(1, 5), embeds(9, 5)))


def test_ofs_is_the_published_one_unless_it_is_given():
    model = small_model(num_layers=1, ofs_embed_dim=32, time_embed_dim=32)
    assert float(prepared(model).inputs.ofs) == 2.0
    given = prepared(model, conditions=Conditions(ofs=3.0))
    assert float(given.inputs.ofs) == 3.0
    with pytest.raises(ValueError, match="ofs: expected none for this network"):
        prepared(small_model(num_layers=1), conditions=Conditions(ofs=2.0))


def test_frames_that_fill_a_token_are_computed_in_front_and_cut():
    """CogVideoX1.5: three latent frames are computed as four; the first is cut."""
    model = small_model(num_layers=1, patch_size_t=2, in_channels=7)
    assert model.description.latent_shape(9, 64, 64)[0] == 3
    image = jax.random.normal(jax.random.key(4), (1, 3, 3, 8, 8))
    noise = jax.random.normal(jax.random.key(5), (1, 4, 4, 8, 8))
    front = jnp.concatenate([image[:, :1], image], 1)

    def run(frames, image):
        return sampled(
            model,
            latent_shape=(frames, 4, 8, 8),
            noise=noise,
            guidance=1.0,
            conditions=Conditions(image_latents=image),
        ).latents

    found = run(3, image)
    assert found.shape == (1, 3, 4, 8, 8)
    np.testing.assert_array_equal(found, run(4, front)[:, 1:])
    np.testing.assert_array_equal(found, run(3, front))


@pytest.mark.parametrize(
    "scheduler", [DDIM, sixbit_jax.CogVideoXDPM()], ids=["ddim", "dpm"]
)
def test_the_noise_of_a_seed_given_with_the_seed_is_the_run_of_the_seed(
    model, scheduler
):
    options = {"guidance": 1.0, "seed": 7}
    noise = sixbit_jax.initial_noise(7, (1, *SHAPE))
    seeded = sampled(model, scheduler, **options)
    given = sampled(model, scheduler, noise=noise, **options)
    np.testing.assert_array_equal(seeded.latents, given.latents)


def test_step_noise_can_be_reproduced_and_given(model):
    dpm, options = sixbit_jax.CogVideoXDPM(), {"guidance": 1.0}
    steps = sixbit_jax.step_noise(7, 3, (1, *SHAPE))
    initial = sixbit_jax.initial_noise(7, (1, *SHAPE))
    seeded = sampled(model, dpm, seed=7, **options)
    given = sampled(model, dpm, seed=1, noise=Noise(initial, steps), **options)
    # Another program: the sum that adds the noise is rounded elsewhere.
    np.testing.assert_allclose(seeded.latents, given.latents, rtol=0, atol=1e-5)
    other = sampled(model, dpm, seed=7, noise=Noise(steps=-steps), **options)
    assert np.abs(other.latents - seeded.latents).max() > 1e-2
    with pytest.raises(ValueError, match=r"noise\.steps: expected none with CogVideo"):
        prepared(model, noise=Noise(steps=steps))


def test_seeds_of_64_bits_are_runs_of_their_own():
    shape = (1, *SHAPE)
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63, 2**64 - 1]
    drawn = [np.asarray(sixbit_jax.initial_noise(seed, shape)) for seed in seeds]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert np.abs(first - second).max() > 0.1
    key, _ = jax.random.split(jax.random.key(5))
    expected = jax.random.normal(key, shape)
    np.testing.assert_array_equal(sixbit_jax.initial_noise(5, shape), expected)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1", None])
def test_other_seeds_are_refused(model, seed):
    with pytest.raises(ValueError, match="seed: expected"):
        prepared(model, seed=seed)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
@pytest.mark.parametrize("where", ["scale", "embeds", "negative", "noise", "ofs"])
def test_numbers_that_give_no_video_are_refused(where, bad):
    model = small_model(num_layers=1, ofs_embed_dim=32, time_embed_dim=32)
    prompt, options, name = PROMPT, {}, where
    broken = np.asarray(embeds(1)).copy()
    broken[0, 2, 3] = bad
    if where == "scale":
        options["guidance"] = Guidance(bad)
    elif where == "ofs":
        options["conditions"] = Conditions(ofs=bad)
    elif where == "noise":
        noise = np.zeros((1, *SHAPE), np.float32)
        noise[0, 1, 2, 3, 4] = bad
        options["noise"] = noise
    else:
        name = {"embeds": "embeds", "negative": "negative_embeds"}[where]
        prompt = dataclasses.replace(PROMPT, **{name: broken})
    with pytest.raises(ValueError, match=rf"{name}: expected .* found"):
        prepared(model, prompt=prompt, **options)


@pytest.mark.parametrize(
    "shape",
    [(1, 5, 4, 8, 8), (2, 3, 4, 8, 8), (1, 4, 3, 8, 8), (3, 4, 8, 8), (1, 3, 4, 8, 4)],
)
def test_noise_of_another_shape_never_overrides_the_latent_shape(model, shape):
    with pytest.raises(ValueError, match=r"noise: expected \[1, 3, 4, 8, 8\], found"):
        prepared(model, noise=np.zeros(shape, np.float32))


def test_every_problem_is_in_one_message():
    model = small_wan.small_model(
        num_layers=1, in_channels=9, image_dim=24, added_kv_proj_dim=128
    )
    with pytest.raises(ValueError) as error:
        prepared(
            model,
            DDIM,
            Prompt(np.zeros((2, 5, 32)), np.zeros((1, 5, 32))),
            latent_shape=(3, 4, 4, 4),
            num_steps=0,
            seed=-5,
            guidance=Guidance(5.0, embedded=3.0),
            noise=np.zeros((1, 3, 4, 4, 4)),
            conditions=Conditions(
                image_latents=np.zeros((2, 5, 3, 4, 4)),
                image_embeds=np.zeros((2, 6, 25)),
                first_frames=np.zeros((2, 3, 4, 4, 4)),
                ofs=1.0,
            ),
        )
    lines = str(error.value).splitlines()
    names = (
        "scheduler",
        "prompt.negative_embeds",
        "num_steps",
        "seed",
        "guidance.embedded",
        "noise",
        "image_latents",
        "image_embeds",
        "first_frames",
        "ofs",
    )
    for name in names:
        assert sum(line.strip().startswith(f"{name}:") for line in lines) == 1, name


@pytest.mark.parametrize("shape", [(3, 4, 8), (3, 4, 8, 0), (3, 4, 8, 8.0), "3488"])
def test_a_latent_shape_that_is_none_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"latent_shape: expected \(F, C, H, W\)"):
        prepared(model, latent_shape=shape)


def test_sizes_that_are_no_whole_tokens_are_refused(model):
    with pytest.raises(ValueError, match=r"latent_shape: .* multiples of .* 2 pixels"):
        prepared(model, latent_shape=(3, 4, 7, 8))
