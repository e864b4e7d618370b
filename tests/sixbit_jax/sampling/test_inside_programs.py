"""The sampler under JAX's own checks and inside other programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import sixbit_jax
from sixbit_jax.sampling.api import prepare, run_jitted
from sixbit_jax.sampling.loop import run_program
from tests.sixbit_jax.models import small_wan
from tests.sixbit_jax.models.small import small_model

SITES = ("attn_in", "attn_out", "ff_in", "ff_mid")
OPTIONS = {
    "latent_shape": (3, 4, 8, 8),
    "num_steps": 4,
    "execution": sixbit_jax.Execution(dtype=jnp.float32),
}
DDIM, UNIPC = sixbit_jax.CogVideoXDDIM(), sixbit_jax.UniPC()


def text():
    return jax.random.normal(jax.random.key(1), (2, 2, 6, 32))


def prompt():
    return sixbit_jax.Prompt(*text(), as_given=True)


def every_mechanism():
    ones = np.full((2, 4), 0.01)
    predictor = sixbit_jax.ErrorPredictor(SITES, ones, 0 * ones)
    return sixbit_jax.chain(
        sixbit_jax.dmpq(predictor, 0.01),
        sixbit_jax.tdc(0.5, residual=True, shared=True),
        sixbit_jax.pdr(),
        sixbit_jax.int8_attention(0.5),
        sixbit_jax.sparse_attention(0.5, dense_steps=0.0, dense_blocks=()),
    )


@pytest.fixture(scope="module")
def model():
    return small_model(num_layers=2)


@pytest.fixture(scope="module")
def quantized(model):
    return sixbit_jax.quantize(model)


@pytest.fixture(scope="module")
def wan():
    return small_wan.small_model(num_layers=2)


def case(name, model, quantized, wan):
    policies = {
        "plain": (model, DDIM, None),
        "chain": (quantized, DDIM, every_mechanism()),
        "steps": (
            quantized,
            sixbit_jax.CogVideoXDPM(),
            sixbit_jax.chain(sixbit_jax.delta_gbs(), sixbit_jax.step_cache(0.5)),
        ),
        "wan": (wan, UNIPC, sixbit_jax.tdc(0.5)),
    }
    return policies[name]


@pytest.fixture
def finding_nans():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


@pytest.mark.parametrize("name", ["plain", "chain", "steps", "wan"])
@pytest.mark.usefixtures("finding_nans")
def test_looking_for_nan_and_inf_finds_none(name, model, quantized, wan):
    network, scheduler, policy = case(name, model, quantized, wan)
    result = sixbit_jax.sample(network, scheduler, prompt(), policy=policy, **OPTIONS)
    for leaf in jax.tree.leaves(result):
        assert np.isfinite(leaf).all()


@pytest.mark.usefixtures("finding_nans")
def test_looking_for_nan_finds_that_of_the_weights(model):
    graph, params = nnx.split(model)
    bias = params["proj_out"]["bias"]
    broken = np.asarray(bias.get_value()).copy()
    broken[0] = np.nan
    params["proj_out"]["bias"] = bias.replace(jax.device_put(broken))
    network = nnx.merge(graph, params)
    with pytest.raises(FloatingPointError):
        sixbit_jax.sample(network, DDIM, prompt(), **OPTIONS)


@pytest.mark.parametrize("name", ["plain", "chain", "wan"])
def test_runs_inside_a_shard_map_with_its_checks(name, model, quantized, wan):
    network, scheduler, policy = case(name, model, quantized, wan)
    found = prepare(network, scheduler, prompt(), policy=policy, **OPTIONS)
    alone = run_jitted(*found)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    over, whole = PartitionSpec("data"), PartitionSpec()

    def part(text, noise, params, inputs):
        state = scheduler.init(found.program.num_steps, noise.shape)
        given = inputs._replace(text=text, noise=noise, scheduler_state=state)
        return run_program(found.program, found.graph, params, given).latents

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(PartitionSpec(None, "data"), over, whole, whole),
        out_specs=over,
    )
    inputs = found.inputs
    latents = jax.jit(run)(inputs.text, inputs.noise, found.params, inputs)
    np.testing.assert_allclose(latents, alone.latents, atol=2e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_guidance_scale_may_be_traced(model, dynamic):
    def latents(scale):
        guidance = sixbit_jax.Guidance(scale, dynamic=dynamic)
        return sixbit_jax.sample(
            model, DDIM, prompt(), guidance=guidance, **OPTIONS
        ).latents

    np.testing.assert_allclose(jax.jit(latents)(4.0), latents(4.0), atol=1e-4)


@pytest.mark.parametrize("name", ["chain", "wan"])
def test_implicit_broadcasts_may_be_refused(name, model, quantized, wan):
    network, scheduler, policy = case(name, model, quantized, wan)
    with jax.numpy_rank_promotion("raise"):
        result = sixbit_jax.sample(
            network, scheduler, prompt(), policy=policy, **OPTIONS
        )
        dynamic = prepare(
            network,
            scheduler,
            prompt(),
            guidance=sixbit_jax.Guidance(4.0, dynamic=True),
            **OPTIONS,
        )
    assert np.isfinite(result.latents).all()
    assert dynamic.inputs.guidance_scale.shape == (4,)
