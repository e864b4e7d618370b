"""The whole sampler lowers for Hopper at real shapes, with our kernels at every site."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks import sampling_model
from pallas_kernels import dispatch
from pallas_kernels.attention import reference as attention_reference
from pallas_kernels.block_stats import reference as block_stats_reference
from pallas_kernels.int8_matmul import reference as int8_matmul_reference
from pallas_kernels.nvfp4_expand import reference as nvfp4_expand_reference
from pallas_kernels.nvfp4_matmul import reference as nvfp4_matmul_reference
from pallas_kernels.quantize_int8 import reference as quantize_int8_reference
from pallas_kernels.quantize_nvfp4 import reference as quantize_nvfp4_reference
from sixbit_jax.policies import chain, fixed, pdr, tdc
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import prepare, run_program

DEFINITIONS = (
    (attention_reference, "attention"),
    (block_stats_reference, "block_stats"),
    (int8_matmul_reference, "int8_matmul"),
    (nvfp4_expand_reference, "nvfp4_expand"),
    (nvfp4_matmul_reference, "nvfp4_matmul"),
    (quantize_int8_reference, "quantize_int8"),
    (quantize_nvfp4_reference, "quantize_nvfp4"),
)
LINEARS = 6


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    """The dispatch believes in a Hopper GPU, and no definition may stand in."""
    monkeypatch.setattr(dispatch, "compute_capability", lambda: dispatch.HOPPER)
    monkeypatch.setattr(
        dispatch, "multiprocessors", lambda: dispatch.HOPPER_MULTIPROCESSORS
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def refused(*_, **__):
        raise AssertionError("a kernel refused its inputs: the definition ran")

    for module, name in DEFINITIONS:
        monkeypatch.setattr(module, name, refused)


def kernels(model: str, policy, *, size=None, **options) -> collections.Counter:
    """Names of the custom calls in the lowered sampler of one layer, with counts."""
    subject = sampling_model.subject(model, frames=None, height=None, width=None)
    if size is not None:
        subject = subject._replace(size=size)
    config = dataclasses.replace(subject.config, num_layers=1)
    network = sampling_model.random_model(config, quantized=True, abstract=True)
    assert isinstance(network, nnx.Module)
    text = jnp.zeros((1, config.max_text_seq_length, config.text_embed_dim))
    program = prepare(
        network,
        sampling_model.scheduler_of(model),
        text.astype(jnp.bfloat16),
        latent_shape=subject.latent_shape,
        negative_text_embeds=text.astype(jnp.bfloat16),
        num_steps=3,
        policy=policy,
        **options,
    )
    traced = jax.jit(run_program, static_argnums=(0, 1)).trace(*program)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return collections.Counter(re.findall(r"custom_call @(mosaic_gpu\w*)", text))


def every_route(**changes):
    """A policy that holds all routes, skips and the rule for outliers."""
    return fixed(route=Route.INT8)._replace(skips=True, routes=tuple(Route), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("cache_format", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("attention", ["bf16", "int8"])
def test_int8_routes_lower_at_five_b(attention, cache_format):
    found = kernels(
        "5b",
        fixed(route=Route.INT8)._replace(skips=True),
        attention=attention,
        cache_format=cache_format,
    )
    # Products, expansions, four quantizations, attention, statistics.
    assert found.total() >= 2 * LINEARS + 4 + 1 + 1


def test_all_routes_rule_and_skips_lower_in_one_program_at_five_b():
    policy = chain(every_route(outlier_rule=True), tdc(0.1), pdr())
    found = kernels("5b", policy, attention="int8", cache_format="nvfp4")
    # INT8, NVFP4 and BF16 branches: 16 + 10 + 6 kernels, attention, statistics.
    assert found.total() >= 34


@pytest.mark.slow
@pytest.mark.parametrize("model", ["2b", "1.5"])
def test_other_models_lower(model):
    policy = every_route(outlier_rule=True)
    found = kernels(model, policy, attention="int8", cache_format="int8")
    assert found.total() >= 34


@pytest.mark.slow
def test_batched_guidance_lowers_at_five_b():
    found = kernels("5b", every_route(), batched_guidance=True, cache_format="int8")
    assert found.total() >= 34
