"""The whole sampler lowers for Hopper at real shapes, our kernels at every site."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from pallas_kernels.attention import reference as attention_reference
from pallas_kernels.attention import sparse_reference
from pallas_kernels.block_stats import reference as block_stats_reference
from pallas_kernels.int8_matmul import reference as int8_matmul_reference
from pallas_kernels.nvfp4_expand import reference as nvfp4_expand_reference
from pallas_kernels.nvfp4_matmul import reference as nvfp4_matmul_reference
from pallas_kernels.quantize_int8 import reference as quantize_int8_reference
from pallas_kernels.quantize_nvfp4 import reference as quantize_nvfp4_reference
from sixbit_jax.benchmark import subject as sampling_model
from sixbit_jax.policies import (
    chain,
    fixed,
    int8_attention,
    pdr,
    sparse_attention,
    tdc,
)
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import prepare, run_program
from sixbit_jax.sampling.options import Execution

DEFINITIONS = (
    (attention_reference, "attention"),
    (sparse_reference, "attention"),
    (sparse_reference, "quantized_attention"),
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


def traced(model: str, policy, *, lora_rank: int = 0, **options):
    """The sampler of one layer of a model at its default video size, traced."""
    subject = sampling_model.subject(model, frames=None, height=None, width=None)
    config: Any = dataclasses.replace(subject.config, num_layers=1)
    if model == "hunyuan-video":
        config = dataclasses.replace(config, num_single_layers=1)
    arguments = prepare(
        sampling_model.random_model(
            config, quantized=True, abstract=True, lora_rank=lora_rank
        ),
        sampling_model.scheduler_of(subject),
        sampling_model.prompts(subject),
        latent_shape=subject.latent_shape,
        num_steps=3,
        policy=policy,
        execution=Execution(**options),
    )
    return jax.jit(run_program, static_argnums=(0, 1)).trace(*arguments)


def kernels(jaxpr) -> int:
    """Kernels in a traced program: the primitive that `plgpu.kernel` binds."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "mpmd_map":
            total += 1
            continue
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += kernels(inner)
    return total


def lowered_kernels(program) -> int:
    """Kernels in the same program as Mosaic made them for a Hopper GPU."""
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(r"custom_call @mosaic_gpu\w*", text))


def every_route(**changes):
    """A policy that holds all routes, skips and the rule for outliers."""
    return fixed(route=Route.INT8)._replace(skips=True, routes=tuple(Route), **changes)


def int8_routes():
    """A policy with INT8 everywhere and skips."""
    return fixed(route=Route.INT8)._replace(skips=True)


# Products and expansions of six linears, quantizations of four sites, attention,
# statistics. The routes NVFP4 and BF16 add products, quantizations and expansions.
INT8_KERNELS = 2 * LINEARS + 4 + 2
ALL_KERNELS = INT8_KERNELS + LINEARS + 4 + LINEARS


# Wan: eight linears, six sites, and attention to the prompt.
WAN_INT8_KERNELS = 2 * 8 + 6 + 3
WAN_ALL_KERNELS = WAN_INT8_KERNELS + 8 + 6 + 8


@pytest.mark.parametrize("model", ["wan-1.3b", "wan-14b"])
def test_every_operation_of_wan_is_a_kernel(model):
    policy = chain(every_route(outlier_rule=True), tdc(0.1), pdr())
    program = traced(model, policy, attention="int8", cache_format="nvfp4")
    assert kernels(program.jaxpr) >= WAN_ALL_KERNELS


@pytest.mark.slow
def test_wan_lowers():
    program = traced("wan-1.3b", every_route(), attention="int8")
    assert lowered_kernels(program) >= WAN_ALL_KERNELS


# HunyuanVideo: in a dual block twelve linears at eight sites and attention, in a single
# one five at two sites and attention; statistics of both.
HUNYUAN_INT8_KERNELS = 2 * (12 + 5) + (8 + 2) + 2 * 2
HUNYUAN_ALL_KERNELS = HUNYUAN_INT8_KERNELS + (12 + 5) + (8 + 2) + (12 + 5)


def test_every_operation_of_hunyuan_video_is_a_kernel():
    policy = chain(every_route(outlier_rule=True), tdc(0.1), pdr())
    program = traced("hunyuan-video", policy, attention="int8", cache_format="nvfp4")
    assert kernels(program.jaxpr) >= HUNYUAN_ALL_KERNELS
    sparse = chain(int8_routes(), sparse_attention())
    program = traced("hunyuan-video", sparse, attention="int8")
    assert kernels(program.jaxpr) >= HUNYUAN_INT8_KERNELS
    assert not loops_in_branches(program.jaxpr.jaxpr)


@pytest.mark.slow
def test_hunyuan_video_lowers():
    policy = chain(int8_routes(), sparse_attention())
    program = traced("hunyuan-video", policy, attention="int8")
    assert lowered_kernels(program) >= HUNYUAN_INT8_KERNELS


@pytest.mark.parametrize("cache_format", ["bf16", "int8", "nvfp4"])
def test_every_operation_of_int8_routes_is_a_kernel_at_five_b(cache_format):
    program = traced("5b", int8_routes(), attention="int8", cache_format=cache_format)
    assert kernels(program.jaxpr) >= INT8_KERNELS


@pytest.mark.parametrize("model", ["5b", "wan-14b"])
def test_a_lora_beside_the_weights_adds_no_kernel_and_no_loop(model):
    plain, beside = (
        traced(model, int8_routes(), attention="int8", lora_rank=rank)
        for rank in (0, 64)
    )
    assert kernels(beside.jaxpr) == kernels(plain.jaxpr)
    assert not loops_in_branches(beside.jaxpr)


@pytest.mark.parametrize("model", ["2b", "5b", "1.5"])
def test_every_operation_of_all_routes_is_a_kernel(model):
    policy = chain(every_route(outlier_rule=True), tdc(0.1), pdr())
    program = traced(model, policy, attention="int8", cache_format="nvfp4")
    assert kernels(program.jaxpr) >= ALL_KERNELS


@pytest.mark.parametrize("model", ["5b", "wan-1.3b"])
def test_attention_by_plan_holds_both_kernels(model):
    fixed_one = traced(model, int8_routes(), attention="int8")
    policy = chain(int8_routes(), int8_attention(0.1))
    planned = traced(model, policy, attention=None)
    # Norm and rotary of queries and of keys without quantization, and the attention
    # with a fixed and with a running maximum.
    assert kernels(planned.jaxpr) == kernels(fixed_one.jaxpr) + 4


def loops_in_branches(jaxpr, *, inside: bool = False) -> list[str]:
    """Loops in the branches of conditionals, kernels aside."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "mpmd_map":
            continue
        if inside and name in ("while", "scan", "sort"):
            found.append(name)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += loops_in_branches(inner, inside=inside or name == "cond")
    return found


def test_a_loop_in_a_branch_is_found():
    def run(x):
        loop = functools.partial(jax.lax.fori_loop, 0, x.astype(int), jnp.add)
        return jax.lax.cond(x > 0, lambda: loop(0), lambda: 0)

    assert loops_in_branches(jax.make_jaxpr(run)(1.0).jaxpr) == ["while"]


SPARSE_WAYS = [
    {"way": "threshold"},
    {"way": "threshold", "approximate": False},
    {"way": "radial"},
    {"way": "window", "approximate": False},
]


@pytest.mark.parametrize("options", SPARSE_WAYS, ids=str)
@pytest.mark.parametrize(
    ("model", "attention"), [("5b", "int8"), ("5b", "bf16"), ("wan-1.3b", "int8")]
)
def test_sparse_attention_adds_a_few_kernels_and_no_loop(model, attention, options):
    policy = chain(int8_routes(), sparse_attention(**options))
    sparse = traced(model, policy, attention=attention)
    dense = traced(model, int8_routes(), attention=attention)
    # Attention with a fixed and with a running maximum, the lists of blocks, and the
    # means of blocks where something reads them; norm and rotary are made once.
    means = options["way"] == "threshold" or options.get("approximate", True)
    assert kernels(sparse.jaxpr) == kernels(dense.jaxpr) + 3 + means
    assert not loops_in_branches(sparse.jaxpr.jaxpr)


def test_sparse_attention_by_plan_holds_kernels_of_both_precisions():
    policy = chain(int8_routes(), int8_attention(0.1))
    dense = traced("5b", policy, attention=None)
    sparse = traced("5b", chain(policy, sparse_attention()), attention=None)
    # In each precision norm and rotary of queries and of keys, attention with a fixed
    # and with a running maximum, lists and means of blocks.
    assert kernels(sparse.jaxpr) == kernels(dense.jaxpr) + 2 * (2 + 2 + 2)
    assert not loops_in_branches(sparse.jaxpr.jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "attention", "approximate"),
    [("5b", "int8", True), ("5b", "bf16", False), ("wan-1.3b", "int8", True)],
)
def test_sparse_attention_lowers(model, attention, approximate):
    sparse = sparse_attention(0.5, approximate=approximate)
    program = traced(model, chain(int8_routes(), sparse), attention=attention)
    assert lowered_kernels(program) >= INT8_KERNELS + 2


@pytest.mark.slow
@pytest.mark.parametrize("cache_format", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("attention", ["bf16", "int8"])
def test_int8_routes_lower_at_five_b(attention, cache_format):
    program = traced(
        "5b", int8_routes(), attention=attention, cache_format=cache_format
    )
    assert lowered_kernels(program) >= INT8_KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("model", ["2b", "5b", "1.5"])
def test_all_routes_rule_and_skips_lower_in_one_program(model):
    policy = chain(every_route(outlier_rule=True), tdc(0.1), pdr())
    program = traced(model, policy, attention="int8", cache_format="nvfp4")
    assert lowered_kernels(program) >= ALL_KERNELS


@pytest.mark.slow
def test_batched_guidance_lowers_at_five_b():
    program = traced("5b", every_route(), batched_guidance=True, cache_format="int8")
    assert lowered_kernels(program) >= ALL_KERNELS
