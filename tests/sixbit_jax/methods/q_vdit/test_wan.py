"""Tuning another network: text by cross-attention, flow matching, six sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.methods.q_vdit.method import QVDiTOptions
from sixbit_jax.methods.q_vdit.tune import tune_q_vdit
from sixbit_jax.sampling.schedulers import UniPC
from sixbit_jax.tuning.loop import TuneOptions
from sixbit_jax.tuning.trajectories import record_trajectories
from tests.sixbit_jax.models.small_wan import small_model

pytestmark = pytest.mark.slow

SHAPE = (2, 4, 4, 4)


def test_wan_is_tuned_and_sampled():
    model = small_model(num_layers=2)
    text = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    data = record_trajectories(
        model,
        UniPC(),
        text,
        None,
        latent_shape=SHAPE,
        num_steps=3,
        guidance_scale=1.0,
        batch=2,
        as_given=True,
    )
    common = {
        "latent_shape": SHAPE,
        "num_steps": 3,
        "guidance": 1.0,
        "noise": data.latents[0],
        "execution": sixbit_jax.Execution(dtype=jnp.float32),
    }
    prompt = sixbit_jax.Prompt(text, as_given=True)
    exact = sixbit_jax.sample(model, UniPC(), prompt, **common)
    packed, losses = tune_q_vdit(
        model,
        data,
        QVDiTOptions(weight_bits=6, activation_bits=6),
        loop=TuneOptions(iterations=40, batch=2, iterations_per_call=20),
        learning_rates={"estimator": 1e-2},
        devices=jax.devices()[:1],
    )
    assert losses["mse"][-8:].mean() < losses["mse"][:4].mean()
    weight = packed.blocks.attn2.to_out.weight.get_value()
    assert isinstance(weight, CorrectedArray)
    # Two frames, no text in the residual stream.
    assert weight.format_name == "corrected-r1g2t0-uniform6"
    assert not isinstance(packed.blocks.attn2.to_k.weight.get_value(), CorrectedArray)
    policy = sixbit_jax.fixed(route=sixbit_jax.Route.INT6)
    found = sixbit_jax.sample(packed, UniPC(), prompt, policy=policy, **common)
    error = np.linalg.norm(found.latents - exact.latents)
    assert 0 < error / np.linalg.norm(exact.latents) < 0.5
