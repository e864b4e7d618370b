"""Q-VDiT's student: where it starts, what it learns, how wide it is."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from sixbit_jax.demo.model import demo_scheduler
from sixbit_jax.methods.q_vdit.factors import factors_of, frame_factors
from sixbit_jax.methods.q_vdit.method import (
    QVDiTOptions,
    activation_levels,
    average_bits,
    q_vdit_method,
    q_vdit_start,
    student_params,
    student_weights,
)
from sixbit_jax.methods.q_vdit.pack import (
    fixed_params,
    packed_model,
    stored_bytes,
)
from sixbit_jax.nn.fake_quantize import fake_quantize_tokens
from sixbit_jax.quantizers.range_search import search_range
from sixbit_jax.tuning.loop import TuneOptions, Tuner
from sixbit_jax.tuning.method import weights_of, with_activation_bits
from sixbit_jax.tuning.observe import observe
from tests.sixbit_jax.tuning.runs import (
    LATENTS,
    NAME,
    TEXT_ROWS,
    teacher,
    trajectories,
)

OPTIONS = QVDiTOptions(weight_bits=3, activation_bits=6, inner_rank=2)
RATES = {"step_sizes": 1e-4, "estimator": 1e-2, "factors": 1e-2, "inner": 1e-3}


@pytest.fixture(scope="module")
def batch():
    return trajectories().batch(np.array([0, 7, 13, 20]))


@pytest.fixture(scope="module")
def factors(batch):
    shape = {"frames": LATENTS[0], "text_rows": TEXT_ROWS}
    return frame_factors(teacher(), [batch], OPTIONS, **shape)


@pytest.fixture(scope="module")
def start(factors):
    return q_vdit_start(
        teacher(), OPTIONS, frames=LATENTS[0], factors=factors, text_rows=TEXT_ROWS
    )


@pytest.fixture(scope="module")
def tuned(start):
    options = TuneOptions(iterations=30, batch=4, iterations_per_call=15)
    method = q_vdit_method(text_rows=TEXT_ROWS)
    tuner = Tuner(teacher(), method, options, devices=jax.devices()[:1])
    return tuner.run(tuner.init(start, RATES), start.frozen, trajectories())


@functools.cache
def forward():
    graph, _ = nnx.split(teacher())
    return jax.jit(lambda params, inputs: nnx.merge(graph, params)(*inputs))


def run(params, batch):
    return np.asarray(forward()(params, batch[:3]))


def test_before_tuning_the_student_is_the_searched_grid(start, batch):
    weights = student_weights(start.trainable, start.frozen, text_rows=TEXT_ROWS)
    plain = weights_of(nnx.state(teacher()), tuple(weights))
    assert len(weights) == 6
    for name, weight in weights.items():
        grid = search_range(plain[name], 7.0)
        codes = jnp.round(plain[name] / grid.scale[..., None])
        zero = grid.zero_point[..., None]
        expected = jnp.clip(codes, -zero, 7 - zero) * grid.scale[..., None]
        np.testing.assert_allclose(weight.dequantize(), expected, atol=1e-6)
        x = jax.random.normal(jax.random.key(0), (1, TEXT_ROWS + 48, x_width(weight)))
        one = jax.tree.map(lambda leaf: leaf[1], weight)
        np.testing.assert_allclose(
            one.apply(x), x @ expected[1].T, rtol=1e-3, atol=1e-3
        )


def x_width(weight):
    return weight.shape[-1]


def test_tuning_brings_the_student_nearer_to_the_teacher(start, tuned, batch):
    state, history = tuned
    truth = batch.prediction
    before, after = (
        np.square(run(params, batch) - truth).mean()
        for params in (
            fixed_params(start.trainable, start.frozen, text_rows=TEXT_ROWS),
            fixed_params(state.trainable, start.frozen, text_rows=TEXT_ROWS),
        )
    )
    assert after < 0.7 * before
    assert history["relations"].min() >= -1e-6
    np.testing.assert_allclose(
        history["loss"], history["mse"] + 100 * history["relations"], rtol=1e-4
    )


def test_all_groups_get_gradients_and_move(start, tuned):
    state, history = tuned
    for group in RATES:
        assert history[f"gradient_{group}"][5:].min() > 0
        moved = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()),
            state.trainable[group],
            start.trainable[group],
        )
        assert min(jax.tree.leaves(moved)) > 0


def test_fixed_parameters_compute_what_the_student_computes(start, tuned, batch):
    trainable = tuned[0].trainable
    student = student_params(trainable, start.frozen, text_rows=TEXT_ROWS)
    fixed = fixed_params(trainable, start.frozen, text_rows=TEXT_ROWS)
    np.testing.assert_allclose(run(fixed, batch), run(student, batch), atol=2e-4)


def test_fewer_activation_bits_are_farther_away(start, tuned, batch):
    fixed = fixed_params(tuned[0].trainable, start.frozen, text_rows=TEXT_ROWS)
    unquantized = run(fixed, batch)
    errors = []
    for bits in (8, 6):
        options = QVDiTOptions(weight_bits=3, activation_bits=bits)
        levels = activation_levels(teacher(), options)
        found = run(with_activation_bits(fixed, levels), batch)
        errors.append(np.square(found - unquantized).mean())
    assert 0 < errors[0] < errors[1]
    with pytest.raises(ValueError, match="expected a corrected weight, found"):
        with_activation_bits(nnx.state(teacher()), {NAME: 63})


def test_m_starts_from_error_and_share_of_each_frame(batch, factors):
    """softmax_i(1 - cos) / share, on what a linear really reads."""

    def keep(name, x):
        return x

    seen = observe(teacher(), [batch], keep, dtype=jnp.float32)[NAME]
    x = np.asarray(seen)[:, :, TEXT_ROWS:]
    rounded = np.asarray(fake_quantize_tokens(seen, jnp.float32(63)))[:, :, TEXT_ROWS:]
    for layer in range(2):
        frames = [
            part[layer].reshape(4, 3, -1).transpose(1, 0, 2).reshape(3, -1)
            for part in (x.astype(np.float64), rounded.astype(np.float64))
        ]
        cosine = (frames[0] * frames[1]).sum(1) / np.prod(
            [np.linalg.norm(part, axis=1) for part in frames], axis=0
        )
        share = np.abs(frames[0]).sum(1) / np.abs(frames[0]).sum()
        raised = np.exp(1 - cosine)
        expected = raised / raised.sum() / share
        np.testing.assert_allclose(factors[NAME][layer, 1:], expected, rtol=1e-4)
        assert factors[NAME][layer, 0] == 1


def test_equal_frames_have_factors_of_one():
    sums = jnp.ones((2, 4, 5)) * jnp.array([0.9, 1.0, 1.0, 3.0])[:, None]
    np.testing.assert_allclose(factors_of(sums, 0), np.ones((2, 5)), rtol=1e-6)


def test_average_bits_are_the_real_ones():
    every = QVDiTOptions(weight_bits=3, activation_bits=6)
    attention = QVDiTOptions(weight_bits=3, activation_bits=6, scope="attention")
    assert average_bits(teacher(), every) == (3, 6)
    # Feed-forward linears are two thirds of a block: (3 + 2 * 8) / 3.
    np.testing.assert_allclose(average_bits(teacher(), attention), (19 / 3, 22 / 3))


def test_stored_bytes_count_what_is_stored():
    options = QVDiTOptions(weight_bits=4)
    params = nnx.state(teacher())
    every = sum(x.size for x in jax.tree.leaves(params))
    sites = 2 * 12 * 128 * 128
    rows, columns = 2 * (4 + 4 + 1) * 128, 2 * (4 + 1 + 4) * 128
    expected = 2 * (every - sites) + sites // 2 + 5 * rows
    assert stored_bytes(teacher(), options, estimator=False) == expected
    assert stored_bytes(teacher(), options) == expected + 4 * (rows + columns)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"(?s)weight_bits: expected 3 to 8.*scope"):
        QVDiTOptions(weight_bits=2, scope="mlp")
    wrong = {NAME: jnp.ones((2, 9))}
    names = partial(q_vdit_start, teacher(), OPTIONS, frames=3, text_rows=TEXT_ROWS)
    every = dict.fromkeys(student_names(), wrong[NAME])
    with pytest.raises(ValueError, match=r"expected \(2, 4\), found \(2, 9\)"):
        names(factors=every)


def student_names():
    return tuple(activation_levels(teacher(), OPTIONS))


@pytest.fixture(scope="module")
def packed(start, tuned):
    return packed_model(
        teacher(), tuned[0].trainable, start.frozen, OPTIONS, text_rows=TEXT_ROWS
    )


def test_packing_changes_no_value(packed, start, tuned, batch):
    trainable = tuned[0].trainable
    weights = student_weights(trainable, start.frozen, text_rows=TEXT_ROWS)
    for name, stored in weights_of(nnx.state(packed), tuple(weights)).items():
        np.testing.assert_array_equal(
            stored.dequantize(), weights[name].weight.dequantize()
        )
    fixed = fixed_params(trainable, start.frozen, text_rows=TEXT_ROWS)
    _, params = nnx.split(packed)
    np.testing.assert_allclose(run(params, batch), run(fixed, batch), atol=1e-4)


def test_routes_give_what_fake_quantization_gives(packed, start, tuned, batch):
    """The integer products of INT6 and the update beside them, in the sampler."""
    trainable = tuned[0].trainable
    fixed = fixed_params(trainable, start.frozen, text_rows=TEXT_ROWS)
    levels = activation_levels(teacher(), OPTIONS)
    graph, _ = nnx.split(teacher())
    simulated = nnx.merge(graph, with_activation_bits(fixed, levels))
    results = [
        sixbit_jax.sample(
            model,
            demo_scheduler(),
            batch.text[:1],
            latent_shape=LATENTS,
            num_steps=2,
            guidance=1.0,
            policy=policy,
            execution=sixbit_jax.Execution(dtype=jnp.float32),
        ).latents
        for model, policy in (
            (simulated, None),
            (packed, sixbit_jax.fixed(route=sixbit_jax.Route.INT6)),
            (teacher(), None),
        )
    ]
    apart = np.abs(results[2] - results[0]).max()
    assert np.abs(results[1] - results[0]).max() < 0.02 * apart


def test_a_step_size_below_zero_is_not_packed(start):
    broken = jax.tree.map(lambda x: -x, start.trainable["step_sizes"])
    trainable = {**start.trainable, "step_sizes": broken}
    with pytest.raises(ValueError, match="expected positive step sizes"):
        packed_model(teacher(), trainable, start.frozen, OPTIONS, text_rows=TEXT_ROWS)
