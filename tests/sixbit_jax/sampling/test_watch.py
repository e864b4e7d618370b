"""A callback per step that can end a run, and Ctrl-C."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.sampling.api import prepare, run_jitted
from tests.sixbit_jax.models import small_wan
from tests.sixbit_jax.models.small import small_model

STEPS = 5
OPTIONS = {
    "latent_shape": (3, 4, 8, 8),
    "num_steps": STEPS,
    "policy": sixbit_jax.tdc(0.9),
    "execution": sixbit_jax.Execution(dtype=jnp.float32),
}


@pytest.fixture(scope="module")
def model():
    return small_model(num_layers=2)


def run(model, scheduler=None, **options):
    text = jax.random.normal(jax.random.key(1), (2, 1, 6, 32))
    return sixbit_jax.sample(
        model,
        sixbit_jax.CogVideoXDPM() if scheduler is None else scheduler,
        sixbit_jax.Prompt(*text),
        **OPTIONS | options,
    )


@pytest.fixture(scope="module")
def plain(model):
    return run(model)


def test_every_step_is_reported_and_no_number_changes(model, plain):
    seen = []
    found = run(model, on_step=lambda done, count: seen.append((done, count)))
    assert seen == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert found.steps_done == STEPS
    jax.tree.map(np.testing.assert_array_equal, found[:2], plain[:2])


def test_a_callback_ends_the_run_and_leaves_what_is_finished(model, plain):
    seen = []

    def at_two(done, count):
        seen.append(done)
        return done == 2

    found = run(model, on_step=at_two)
    assert seen == [1, 2]
    assert found.steps_done == 2
    assert found.trace.skip.shape[0] == 2
    np.testing.assert_array_equal(found.trace.gamma, plain.trace.gamma[:2])
    assert np.abs(found.latents - plain.latents).max() > 1e-3


def test_another_callback_does_not_compile_again(model):
    run(model, on_step=lambda *_: None)
    before = run_jitted._cache_size()
    run(model, on_step=lambda done, _: done == 1)
    assert run_jitted._cache_size() == before


@pytest.fixture
def interruptible():
    """Python's own handler: a shell's background jobs start with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_run_within_a_step_and_holds_the_result(model, plain):
    def press(done, count):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        run(model, on_step=press)
    assert isinstance(interrupt.value, sixbit_jax.Interrupted)
    result = interrupt.value.result
    assert result.steps_done in (2, 3)
    done = result.steps_done
    np.testing.assert_array_equal(result.trace.gamma, plain.trace.gamma[:done])
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interrupt_or_error_of_the_callback_ends_the_run(model):
    calls = []

    def failing(error):
        def on_step(done, count):
            calls.append(done)
            raise error

        return on_step

    with pytest.raises(sixbit_jax.Interrupted) as interrupt:
        run(model, on_step=failing(KeyboardInterrupt()))
    assert interrupt.value.result.steps_done == 1
    with pytest.raises(RuntimeError, match="disk is full"):
        run(model, on_step=failing(RuntimeError("disk is full")))
    assert calls == [1, 1]


def test_a_run_that_ended_in_the_first_network_does_not_start_the_second():
    pair = [small_wan.small_model(seed, num_layers=1) for seed in (0, 1)]
    conditions = sixbit_jax.Conditions(low_noise=sixbit_jax.LowNoise(pair[1]))
    options = {"latent_shape": (3, 4, 4, 4), "conditions": conditions}
    whole = run(pair[0], sixbit_jax.UniPC(), **options)
    seen = []
    watched = run(
        pair[0], sixbit_jax.UniPC(), on_step=lambda d, n: seen.append(d), **options
    )
    assert seen == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(watched.latents, whole.latents)
    ended = run(pair[0], sixbit_jax.UniPC(), on_step=lambda d, n: d == 1, **options)
    assert ended.steps_done == 1


def test_without_a_callback_the_program_holds_none(model):
    text = jax.random.normal(jax.random.key(1), (1, 6, 32))

    def traced(**more):
        found = prepare(
            model,
            sixbit_jax.CogVideoXDDIM(),
            text,
            guidance=1.0,
            **OPTIONS,
            **more,
        )
        return str(run_jitted.trace(*found).jaxpr)

    assert "callback" not in traced()
    assert "while" not in traced()
    assert traced(on_step=lambda *_: None).count("io_callback") == 1
