"""What each operation runs as on which device; warnings of definitions."""

from __future__ import annotations

import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from pallas_kernels.attention import attention, quantize_qkv, quantized_attention
from pallas_kernels.catalogue import probes
from pallas_kernels.dispatch import Implementation
from pallas_kernels.triton_backend import calls
from pallas_kernels.triton_backend.devices import DeviceClass, class_of, shared_memory

# The probes' heads have 64 channels: in 16 bits cuDNN's attention is the faster one.
OTHERS = {
    "attention": "cudnn",
    "quantized_attention": "triton",
    "int8_matmul": "triton",
    "nvfp4_expand": "triton",
    "quantize_int8": "triton",
    "quantize_nvfp4": "triton",
    "block_stats": "triton",
    "norm_rope": "triton",
    "norm_rope_qkv": "triton",
    "nvfp4_matmul": "xla",
    "channel_moments": "reference",
}
BLACKWELL = {**OTHERS, "nvfp4_matmul": "scaled_matmul"}
EXPECTED = {
    (8, 0): OTHERS,
    (8, 6): OTHERS,
    (8, 9): OTHERS,
    (9, 0): dict.fromkeys(OTHERS, "mosaic_gpu"),
    (10, 0): {**BLACKWELL, "quantized_attention": "cudnn"},
    (12, 0): BLACKWELL,
}
WITHOUT_TRITON = {
    "attention": "cudnn",
    "quantized_attention": "cudnn",
    "int8_matmul": "reference",
    "nvfp4_expand": "reference",
    "quantize_int8": "xla",
    "quantize_nvfp4": "xla",
    "block_stats": "reference",
    "norm_rope": "reference",
    "norm_rope_qkv": "reference",
    "nvfp4_matmul": "xla",
    "channel_moments": "reference",
}


def fake_device(monkeypatch, capability, *, triton=True):
    monkeypatch.setattr(dispatch, "compute_capability", lambda: capability)
    monkeypatch.setattr(dispatch, "_warned", set())
    # Asks for a GPU when it is traced.
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **__: q)
    if not triton:
        monkeypatch.setitem(sys.modules, "jax_triton", None)
        return
    monkeypatch.setattr(calls, "_triton_call", lambda: None)

    def call(kernel, arrays, outputs, **options):
        return [jnp.zeros(o.shape, o.dtype) for o in outputs]

    monkeypatch.setattr(calls, "call", call)


def chosen():
    made = {}
    for name, probe in probes().items():
        with dispatch.choices() as found:
            probe()
        made[name] = next(c for c in found if c.operation == name)
    return made


@pytest.mark.parametrize("capability", EXPECTED)
def test_every_operation_takes_the_intended_implementation(monkeypatch, capability):
    fake_device(monkeypatch, capability)
    found = {name: choice.implementation for name, choice in chosen().items()}
    assert found == EXPECTED[capability]


@pytest.mark.parametrize(
    ("capability", "head_dim", "expected"),
    [
        ((8, 9), 64, {"attention": "cudnn", "quantized_attention": "triton"}),
        ((8, 9), 128, {"attention": "triton", "quantized_attention": "triton"}),
        ((9, 0), 64, {"attention": "cudnn", "quantized_attention": "cudnn"}),
        ((9, 0), 128, {"attention": "triton", "quantized_attention": "triton"}),
    ],
)
def test_attention_beside_mosaic_takes_the_faster_of_triton_and_cudnn(
    monkeypatch, capability, head_dim, expected
):
    fake_device(monkeypatch, capability)
    x = jnp.ones((1, 8, 1, head_dim), jnp.bfloat16)
    made = quantize_qkv(x, x, x)
    with dispatch.without("mosaic_gpu"), dispatch.choices() as found:
        # Functions of their own: what was traced for another device is not found.
        jax.eval_shape(lambda: attention(x, x, x))
        jax.eval_shape(lambda: quantized_attention(made))
    chosen = {choice.operation: choice.implementation for choice in found}
    assert {name: chosen[name] for name in expected} == expected


def test_without_triton_the_fast_formulations_of_xla_and_cudnn_run(monkeypatch):
    fake_device(monkeypatch, (8, 9), triton=False)
    found = chosen()
    assert {n: c.implementation for n, c in found.items()} == WITHOUT_TRITON
    assert found["block_stats"].install == calls.INSTALL
    assert found["block_stats"].definition
    assert not found["quantize_int8"].definition


def test_a_cpu_takes_the_definitions_and_is_not_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: choice.implementation for name, choice in chosen().items()}
    assert set(found.values()) == {"reference"}


def test_older_gpus_are_told_why(monkeypatch):
    fake_device(monkeypatch, (7, 5))
    with pytest.raises(NotImplementedError, match=r"\(8, 0\) or later.*\(7, 5\)"):
        calls.needs_triton()


def test_a_definition_on_a_gpu_warns_once_and_names_what_helps(monkeypatch):
    fake_device(monkeypatch, (8, 9), triton=False)
    x = jnp.ones((1, 8, 1, 32))
    made = quantize_qkv(x, x, x)
    with pytest.warns(UserWarning, match=r"quantized_attention .*pip install"):
        jax.eval_shape(quantized_attention, made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(quantized_attention, made)


def test_a_definition_that_no_package_helps_says_the_reasons(monkeypatch):
    fake_device(monkeypatch, (8, 9))
    x = jnp.ones((1, 8, 1, 32))
    with pytest.warns(UserWarning, match=r"cudnn: cuDNN .* needs q, k and v all"):
        jax.eval_shape(attention, x, x, x)


def test_left_out_implementations_run_only_by_name():
    candidates = (
        Implementation("fast", lambda: 1),
        Implementation("slow", lambda: 2),
    )
    with dispatch.without("fast"):
        assert dispatch.dispatch("op", candidates, None) == 2
        assert dispatch.dispatch("op", candidates, "fast") == 1
    assert dispatch.dispatch("op", candidates, None) == 1


@pytest.mark.parametrize(
    ("capability", "kind"),
    [
        (None, DeviceClass.SMALL),
        ((8, 0), DeviceClass.AMPERE),
        ((8, 6), DeviceClass.SMALL),
        ((8, 9), DeviceClass.SMALL),
        ((9, 0), DeviceClass.HOPPER),
        ((10, 0), DeviceClass.BLACKWELL),
        ((10, 3), DeviceClass.BLACKWELL),
        ((12, 0), DeviceClass.SMALL),
    ],
)
def test_devices_are_classed_by_what_their_tiles_need(capability, kind):
    assert class_of(capability) is kind
    assert shared_memory(kind) in (99 * 1024, 163 * 1024, 227 * 1024)
