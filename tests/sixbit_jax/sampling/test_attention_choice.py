"""Who chooses the precision of attention: the sampler's option or the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.policies import int8_attention
from sixbit_jax.sampling.options import Execution, Prompt
from sixbit_jax.sampling.schedulers import CogVideoXDDIM
from tests.sixbit_jax.models.small import small_model


def embeds(seed: int):
    return jax.random.normal(jax.random.key(seed), (1, 6, 32))


@pytest.fixture(scope="module")
def model():
    return small_model(num_attention_heads=2, num_layers=3)


def run(model, *, attention=None, **options):
    return sixbit_jax.sample(
        model,
        CogVideoXDDIM(),
        Prompt(embeds(1), embeds(9)),
        latent_shape=(3, 4, 8, 8),
        num_steps=4,
        execution=Execution(dtype=jnp.float32, attention=attention),
        **options,
    )


def test_attention_follows_the_plan_block_by_block(model):
    """All, none and some of the blocks in INT8: one program equals the fixed ones."""
    everywhere = run(model, attention="int8")
    nowhere = run(model)
    assert everywhere.trace.int8_scores.all()
    assert not nowhere.trace.int8_scores.any()
    planned = run(model, policy=int8_attention())
    np.testing.assert_array_equal(planned.latents, everywhere.latents)
    planned = run(model, policy=int8_attention(blocks=[]))
    np.testing.assert_array_equal(planned.latents, nowhere.latents)
    planned = run(model, policy=int8_attention(blocks=[1]))
    assert (np.asarray(planned.trace.int8_scores) == [False, True, False]).all()
    change = np.abs(np.asarray(planned.latents - nowhere.latents)).max()
    assert change > 1e-2


def test_stable_blocks_get_8_bit_attention_and_the_option_overrules(model):
    gamma = np.asarray(run(model).trace.gamma)
    limit = float(np.median(gamma))
    planned = run(model, policy=int8_attention(limit)).trace
    assert not planned.int8_scores[0].any()
    found = np.asarray(planned.gamma)[:-1] <= limit
    np.testing.assert_array_equal(planned.int8_scores[1:], found)
    assert 0 < found.mean() < 1
    overruled = run(model, policy=int8_attention(limit), attention="bf16")
    np.testing.assert_array_equal(overruled.latents, run(model).latents)


def test_an_unknown_precision_of_attention_is_refused(model):
    with pytest.raises(ValueError, match=r"attention.*'fp8'"):
        run(model, attention="fp8")
