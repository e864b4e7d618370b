"""A network added as `docs/add-a-model.md` says runs through everything."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import sixbit_jax
from convert import convert, tables
from sixbit_jax.models import registry
from sixbit_jax.models.network import PromptInputs, for_layer, layers_of
from sixbit_jax.policies.bits import activation_bits
from sixbit_jax.sampling.api import block_grid
from sixbit_jax.sampling.guidance import guide
from tests.toy_network.config import ToyConfig
from tests.toy_network.network import ToyTransformer
from tests.toy_network.rules import TABLE

SHAPE = (2, 4, 2, 4)
EXECUTION = sixbit_jax.Execution(dtype=jnp.float32, cache_format="float32")
SCHEDULER = sixbit_jax.FlowMatchEuler(shift=3.0)


@pytest.fixture(scope="module")
def model():
    return ToyTransformer(ToyConfig(), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def prompt():
    text = jax.random.normal(jax.random.key(1), (2, 1, 5, 16))
    return sixbit_jax.Prompt(text[0], text[1])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """One row of the registry, and one rule table."""
    row = ("tests.toy_network.network", "ToyTransformer")
    monkeypatch.setitem(registry.ROWS, ToyTransformer.class_name, row)
    monkeypatch.setitem(tables._FIXED, TABLE.model_class, TABLE)


def plain_forward(model, latents, text, timestep):
    """All blocks one after the other, without the sampler."""
    given = model.prepare_prompt(PromptInputs(text), dtype=jnp.float32)
    x, conditioning = model.embed(latents, given, timestep)
    for name, blocks in model.blocks_by_stack().items():
        graph, params = nnx.split(blocks)
        own = layers_of(conditioning, name)
        count = len(jax.tree.leaves(params)[0])
        for layer in range(count):
            pick = lambda leaf, i=layer: leaf[i]  # noqa: E731
            context = None if own is None else jax.tree.map(pick, own)
            block = nnx.merge(graph, jax.tree.map(pick, params))
            x, _ = block(x, for_layer(conditioning, context))
    return model.unembed(x, conditioning, latents.shape)


def run(model, prompt, **options):
    options = {"latent_shape": SHAPE, "execution": EXECUTION} | options
    return sixbit_jax.sample(model, SCHEDULER, prompt, **options)


def test_two_stacks_are_the_plain_denoising_loop(model, prompt):
    noise = jax.random.normal(jax.random.key(3), (1, *SHAPE))
    result = run(model, prompt, noise=noise)
    assert result.trace.gamma.shape == (4, 2, 3)
    state, x = SCHEDULER.init(4, noise.shape), noise
    for index, t in enumerate(SCHEDULER.timesteps(4)):
        time = jnp.full((1,), t, jnp.float32)
        found, other = (
            plain_forward(model, x, text, time)
            for text in (prompt.embeds, prompt.negative_embeds)
        )
        x, state = SCHEDULER.step(state, index, guide(found, other, 2.0), x, None)
    np.testing.assert_allclose(result.latents, x, rtol=1e-4, atol=1e-4)


def test_the_grid_has_the_sites_of_both_stacks_and_no_work_where_there_is_none(model):
    grid = block_grid(model)
    square = 128**2
    assert grid.sites == ("mix_in", "mix_out", "close")
    np.testing.assert_array_equal(
        grid.macs, square * np.array([[2, 2, 0], [2, 2, 0], [0, 0, 1]])
    )


def test_routes_and_bits_of_both_stacks(model, prompt):
    routes = np.array([[0, 1, 0], [1, 1, 1], [1, 1, 0]])
    quantized = sixbit_jax.quantize(model)
    found = run(quantized, prompt, policy=sixbit_jax.fixed(route=routes))
    trace = found.trace
    has = block_grid(model).macs > 0
    np.testing.assert_array_equal(np.asarray(trace.route)[:, :, has][0, 0], routes[has])
    bits = activation_bits(trace.route, trace.skip, block_grid(model))
    widths = np.where(routes == sixbit_jax.Route.NVFP4, 4, 8)
    expected = (widths * block_grid(model).macs).sum() / block_grid(model).macs.sum()
    assert bits == pytest.approx(expected)
    exact = run(model, prompt)
    error = np.linalg.norm(found.latents - exact.latents)
    assert 1e-4 < error / np.linalg.norm(exact.latents) < 0.3


def test_a_whole_step_is_skipped_in_both_stacks(model, prompt):
    skip = np.zeros(4, bool)
    skip[2] = True
    policy = sixbit_jax.fixed(skip=skip)
    own = run(model, prompt, policy=policy)
    assert own.trace.skip[2].all()
    assert own.trace.skip.sum() == 6
    grouped = run(model, prompt, policy=policy._replace(group=None))
    np.testing.assert_allclose(own.latents, grouped.latents, atol=1e-4)
    assert np.abs(own.latents - run(model, prompt).latents).max() > 1e-4


def test_it_is_converted_loaded_and_sampled(model, prompt, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    config = {"_class_name": ToyTransformer.class_name, **model.config.to_dict()}
    (source / "config.json").write_text(json.dumps(config))
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        stack, *rest = map(str, path)
        value = np.asarray(variable.get_value())
        if stack not in ToyTransformer.stack_names:
            tensors[TABLE.source_of(".".join(map(str, path)))[0]] = value
            continue
        for layer, part in enumerate(value):
            name = ".".join([stack, str(layer), *rest])
            tensors[TABLE.source_of(name)[0]] = np.ascontiguousarray(part)
    save_file(tensors, source / "diffusion_pytorch_model.safetensors")
    convert(source, tmp_path / "plain")
    loaded, header = sixbit_jax.load(tmp_path / "plain")
    assert set(header.stacks) == set(ToyTransformer.stack_names)
    found, expected = run(loaded, prompt), run(model, prompt)
    np.testing.assert_array_equal(found.latents, expected.latents)


def test_defaults_follow_from_the_description(model):
    description = model.description
    assert description.latent_shape() == (2, 4, 2, 4)
    assert description.latent_shape(9, 32, 32) == (3, 4, 4, 4)
    scheduler = sixbit_jax.scheduler_from_config(
        description.defaults.scheduler_config(32, 32)
    )
    assert scheduler == sixbit_jax.FlowMatchEuler(shift=5.0)
