"""One video on several devices: the numbers and decisions of one device."""

import dataclasses
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax import Route
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.api import prepare
from sixbit_jax.sampling.loop import run_program
from tests.sixbit_jax.models import small_hunyuan_video, small_wan
from tests.sixbit_jax.models.small import small_model

# 105 video tokens and 7 of text: neither divides by 2 or 4.
SHAPE, STEPS = (3, 4, 10, 14), 4
DDIM, UNIPC = sixbit_jax.CogVideoXDDIM(), sixbit_jax.UniPC()
DECISIONS = ("skip", "refresh", "route", "int8_scores", "timestep")
ALL = {"guidance": 2, "sequence": 2, "fsdp": 2}


class Case(NamedTuple):
    """A run without its mesh."""

    model: Any
    scheduler: Any = DDIM
    policy: Any = None
    execution: Any = MappingProxyType({})
    options: Any = MappingProxyType({})


def text():
    return jax.random.normal(jax.random.key(1), (2, 1, 7, 32))


@cache
def cogvideox(heads=4):
    return small_model(num_layers=2, num_attention_heads=heads)


@cache
def quantized():
    return sixbit_jax.quantize(cogvideox())


@cache
def wan(seed=0):
    return small_wan.small_model(seed, num_layers=2, num_attention_heads=4)


def skips(*rows):
    return np.array([[0, 0], *rows], bool)


def by_branch():
    """Whole steps that the conditional branch skips and the other does not."""
    plans = [skips((1, 1), (0, 0), (1, 1)), skips((0, 0), (0, 0), (1, 1))]
    first, second = (sixbit_jax.fixed(skip=plan) for plan in plans)

    def init(grid):
        return (second if grid.branch else first).init(grid)

    return first._replace(init=init, group=None)


def every_route():
    table = np.array([[Route.NVFP4, Route.INT8, Route.BF16, Route.NVFP4]] * 2)
    return sixbit_jax.fixed(skip=skips((1, 0), (0, 1), (1, 1)), route=table)


def live():
    """Mechanisms that decide by what they measure, and where attention looks."""
    return sixbit_jax.chain(
        sixbit_jax.fixed(route=Route.NVFP4),
        sixbit_jax.tdc(5.0, shared=True),
        sixbit_jax.pdr(),
        sixbit_jax.int8_attention(50.0),
        sixbit_jax.sparse_attention(0.5, dense_steps=0.0, dense_blocks=()),
    )


@cache
def case(name):
    pair = sixbit_jax.Conditions(low_noise=sixbit_jax.LowNoise(wan(1), 0.7))
    return {
        "cogvideox": lambda: Case(cogvideox()),
        "groups of heads": lambda: Case(cogvideox(8)),
        "wan": lambda: Case(wan(), UNIPC),
        "routes and skips": lambda: Case(
            quantized(), policy=every_route(), execution={"cache_format": "float32"}
        ),
        "whole steps": lambda: Case(cogvideox(), policy=by_branch()),
        "live": lambda: Case(quantized(), sixbit_jax.CogVideoXDPM(), live()),
        "step cache": lambda: Case(
            wan(), UNIPC, sixbit_jax.step_cache(50.0), {"cache_format": "float32"}
        ),
        "int8 attention": lambda: Case(wan(), UNIPC, execution={"attention": "int8"}),
        "pair": lambda: Case(
            wan(),
            UNIPC,
            sixbit_jax.tdc(5.0),
            {"cache_format": "float32"},
            {"conditions": pair},
        ),
        "batched": lambda: Case(
            cogvideox(),
            policy=sixbit_jax.tdc(5.0),
            execution={"batched_guidance": True, "cache_format": "float32"},
        ),
        "first frame": lambda: Case(
            wan(),
            UNIPC,
            options={
                "conditions": sixbit_jax.Conditions(
                    first_frames=jnp.ones((1, 1, *SHAPE[1:]))
                )
            },
        ),
    }[name]()


def options(found):
    execution = sixbit_jax.Execution(dtype=jnp.float32, **found.execution)
    return {
        "latent_shape": SHAPE,
        "num_steps": STEPS,
        "policy": found.policy,
        "execution": execution,
    } | found.options


def run(found, mesh=None):
    prompt = sixbit_jax.Prompt(*text(), as_given=True)
    return sixbit_jax.sample(
        found.model, found.scheduler, prompt, mesh=mesh, **options(found)
    )


@cache
def alone(name):
    return run(case(name))


def assert_same(result, expected):
    largest = np.abs(expected.latents).max()
    np.testing.assert_allclose(
        result.latents, expected.latents, rtol=0, atol=1e-5 * largest
    )
    for name in expected.trace._fields:
        ours, theirs = getattr(result.trace, name), getattr(expected.trace, name)
        if name in DECISIONS:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        else:
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cogvideox", {"guidance": 2}),
        ("cogvideox", {"sequence": 4}),
        ("cogvideox", {"fsdp": 4}),
        ("cogvideox", ALL),
        ("groups of heads", {"guidance": 2, "sequence": 2}),
        ("wan", {"guidance": 2, "sequence": 4}),
        ("wan", {"fsdp": 2}),
        ("wan", ALL),
        ("routes and skips", {"guidance": 2, "sequence": 2}),
        ("routes and skips", {"fsdp": 2, "sequence": 2}),
        ("whole steps", {"guidance": 2, "sequence": 2}),
        ("whole steps", {"fsdp": 2}),
        ("whole steps", {"fsdp": 4}),
        ("live", {"sequence": 2}),
        ("live", {"guidance": 2}),
        ("step cache", ALL),
        ("int8 attention", {"sequence": 2}),
        ("pair", {"guidance": 2, "sequence": 2}),
        ("pair", {"fsdp": 2}),
        ("batched", {"guidance": 2, "sequence": 2}),
        ("first frame", {"sequence": 4}),
    ],
    ids=str,
)
def test_gives_the_latents_and_the_trace_of_one_device(name, sizes):
    assert_same(run(case(name), sixbit_jax.make_mesh(sizes)), alone(name))


@pytest.mark.parametrize(
    ("name", "something"),
    [
        ("routes and skips", lambda trace: trace.skip),
        ("whole steps", lambda trace: trace.skip[:, 0] != trace.skip[:, 1]),
        ("live", lambda trace: trace.skip),
        ("live", lambda trace: trace.int8_scores),
        ("live", lambda trace: (trace.attention_density > 0) & ~trace.skip),
        ("step cache", lambda trace: trace.skip),
        ("pair", lambda trace: trace.skip),
        ("batched", lambda trace: trace.skip),
    ],
    ids=[
        "routes and skips, skip",
        "whole steps, skip",
        "live, skip",
        "live, int8 scores",
        "live, density",
        "step cache, skip",
        "pair, skip",
        "batched, skip",
    ],
)
def test_the_cases_above_do_what_they_are_for(name, something):
    assert np.asarray(something(alone(name).trace)).any()


@pytest.mark.parametrize("sizes", [{"sequence": 4}, {"fsdp": 2}], ids=str)
def test_hunyuan_video_gives_the_same_as_on_one_device(sizes):
    model = small_hunyuan_video.small_model(num_attention_heads=4)
    given = small_hunyuan_video.small_prompt()
    prompt = sixbit_jax.Prompt(given.embeds, mask=given.mask, pooled=given.pooled)

    def latents(mesh):
        return sixbit_jax.sample(
            model,
            sixbit_jax.FlowMatchEuler(),
            prompt,
            latent_shape=(3, 4, 10, 14),
            num_steps=2,
            guidance=1.0,
            execution=sixbit_jax.Execution(dtype=jnp.float32),
            mesh=mesh,
        )

    assert_same(latents(sixbit_jax.make_mesh(sizes)), latents(None))


def test_no_device_has_a_second_delta_cache():
    found = case("routes and skips")
    layers, mesh = 12, sixbit_jax.make_mesh({"guidance": 2, "sequence": 2})
    model = small_model(num_layers=layers, num_attention_heads=4)
    temporary = {}
    for skipped in (False, True):
        policy = sixbit_jax.fixed(skip=np.zeros((STEPS, layers), bool))
        given = options(found) | {
            "policy": policy._replace(skips=skipped),
            "latent_shape": (9, 4, 16, 16),
        }
        prepared = prepare(model, DDIM, sixbit_jax.Prompt(*text()), mesh=mesh, **given)
        compiled = jax.jit(run_program, static_argnums=(0, 1)).lower(*prepared)
        memory = compiled.compile().memory_analysis()
        assert memory is not None
        temporary[skipped] = memory.temp_size_in_bytes
    tokens = (9 * 8 * 8) // 2 + 4
    shape = (1, tokens, model.config.dim)
    one = jax.eval_shape(lambda: delta_cache.init(layers, shape, "float32"))
    cache_bytes = delta_cache.nbytes(one)
    extra = temporary[True] - temporary[False]
    assert cache_bytes <= extra < 1.6 * cache_bytes


def test_a_callback_is_called_once_per_step_and_ends_all_devices():
    seen = []
    found = case("cogvideox")

    def on_step(done, count):
        seen.append((done, count))
        return done == 2

    result = sixbit_jax.sample(
        found.model,
        found.scheduler,
        sixbit_jax.Prompt(*text()),
        mesh=sixbit_jax.make_mesh({"guidance": 2, "sequence": 2}),
        on_step=on_step,
        **options(found),
    )
    assert seen == [(1, STEPS), (2, STEPS)]
    assert result.steps_done == 2


def test_weights_of_blocks_are_split_over_fsdp():
    found = case("routes and skips")
    prepared = prepare(
        found.model,
        found.scheduler,
        sixbit_jax.Prompt(*text()),
        mesh=sixbit_jax.make_mesh({"fsdp": 4}),
        **options(found),
    )
    weight = prepared.params["transformer_blocks"]["ff"]["up"]["weight"].get_value()
    assert weight.codes.addressable_shards[0].data.shape == (2, 256, 128)
    assert weight.tensor_scale.addressable_shards[0].data.shape == (2,)


def test_what_is_placed_once_is_not_copied_again():
    found, mesh = case("cogvideox"), sixbit_jax.make_mesh(ALL)
    first, second = (
        prepare(
            found.model if params is None else params,
            found.scheduler,
            sixbit_jax.Prompt(*text()),
            mesh=mesh,
            **options(found),
        ).params
        for params in (None, None)
    )
    del second
    again = jax.device_put(first, jax.tree.map(lambda x: x.sharding, first))
    pointers = [
        [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in leaves]
        for leaves in (jax.tree.leaves(first), jax.tree.leaves(again))
    ]
    assert pointers[0] == pointers[1]


def test_all_problems_of_a_mesh_are_in_the_message():
    found = case("cogvideox")
    problem = "guidance=2: expected 1 without two guidance branches"
    with pytest.raises(ValueError, match=problem) as raised:
        sixbit_jax.sample(
            found.model,
            found.scheduler,
            sixbit_jax.Prompt(text()[0]),
            mesh=sixbit_jax.make_mesh({"guidance": 2, "sequence": 3}),
            **options(found) | {"guidance": 1.0},
        )
    assert (
        "expected a divisor of the network's 4 attention heads (1, 2, 4), found 3"
        in (str(raised.value))
    )


def test_rows_that_do_not_divide_over_fsdp_are_named():
    model = small_wan.small_model(num_layers=1, num_attention_heads=3)
    with pytest.raises(ValueError, match=r"fsdp=3: expected rows that divide.*'up'"):
        sixbit_jax.sample(
            model,
            UNIPC,
            sixbit_jax.Prompt(*text(), as_given=True),
            mesh=sixbit_jax.make_mesh({"fsdp": 3}),
            **options(case("wan")),
        )


def test_arrays_on_several_devices_without_a_mesh_get_one_message():
    found = case("cogvideox")
    mesh = jax.make_mesh((8,), ("x",))
    spread = jax.device_put(
        jnp.ones((2, 1, 8, 32)),
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "x")),
    )
    problem = "mesh: expected arrays of one device, found some with"
    with pytest.raises(ValueError, match=problem):
        sixbit_jax.sample(
            found.model,
            found.scheduler,
            sixbit_jax.Prompt(spread[0], jnp.ones((1, 8, 32))),
            **options(found),
        )


def test_arrays_of_explicit_axes_work_with_a_mesh():
    found, expected = case("cogvideox"), alone("cogvideox")
    explicit = jax.make_mesh((2, 2), ("guidance", "sequence"))
    everywhere = jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec())
    prompt = sixbit_jax.Prompt(*jax.device_put(text(), everywhere))
    result = sixbit_jax.sample(
        found.model, found.scheduler, prompt, mesh=explicit, **options(found)
    )
    assert_same(result, expected)


def test_a_program_of_one_device_is_another_key_than_that_of_a_mesh():
    found = case("cogvideox")
    prompt = sixbit_jax.Prompt(*text())
    given = options(found)
    one, several = (
        prepare(found.model, found.scheduler, prompt, mesh=mesh, **given).program
        for mesh in (None, sixbit_jax.make_mesh({"guidance": 2}))
    )
    assert one != several
    assert dataclasses.replace(several, mesh=None, site=one.site) == one
