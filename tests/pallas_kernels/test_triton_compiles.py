"""The Triton kernels compile for every class of GPU; few registers are spilled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels.elementwise import site_fields
from pallas_kernels import dispatch
from pallas_kernels.attention import quantize_qkv
from pallas_kernels.attention import triton as attention
from pallas_kernels.block_stats import cache
from pallas_kernels.block_stats import triton as block_stats
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.int8_matmul import triton as int8_matmul
from pallas_kernels.norm_rope import Heads, Rotary
from pallas_kernels.norm_rope import triton as norm_rope
from pallas_kernels.nvfp4_expand import triton as nvfp4_expand
from pallas_kernels.nvfp4_matmul import triton as nvfp4_matmul
from pallas_kernels.quantize_int8 import triton as quantize_int8
from pallas_kernels.quantize_nvfp4 import triton as quantize_nvfp4
from pallas_kernels.row_tiles.site import SiteInput
from pallas_kernels.triton_backend.devices import class_of, shared_memory
from tests.pallas_kernels import triton_target

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
# Bytes: on 12.0 rows of 12,288 values want a few registers more than 512 threads have.
SPILLED = {(12, 0): 100}
TOKENS, WIDTH = 17_776, 3072


def zeros(*shape, dtype=jnp.bfloat16):
    return jnp.zeros(shape, dtype)


def products():
    for epilogue in (
        EpilogueOperands(bias=zeros(WIDTH), activation="gelu_tanh"),
        EpilogueOperands(
            bias=zeros(WIDTH),
            residual=zeros(TOKENS, WIDTH),
            gate=zeros(WIDTH),
            text_gate=zeros(WIDTH),
            text_rows=226,
        ),
    ):
        int8_matmul.int8_matmul(
            zeros(TOKENS, WIDTH, dtype=jnp.int8),
            zeros(TOKENS, dtype=jnp.float32),
            zeros(WIDTH, WIDTH, dtype=jnp.int8),
            zeros(WIDTH, dtype=jnp.float32),
            epilogue,
            jnp.bfloat16,
        )


def quantizations():
    for k, kind in ((WIDTH, "norm"), (4 * WIDTH, "gelu")):
        site = SiteInput(**site_fields(0, (1, TOKENS, k), kind))
        quantize_int8.quantize_int8(site, with_stats=True)
        quantize_nvfp4.quantize_nvfp4(site, None, with_stats=False)
    plain = SiteInput(zeros(TOKENS, WIDTH), rotation=0)
    quantize_int8.quantize_int8(plain, with_stats=False)


def other_rows():
    codes = zeros(WIDTH, 2 * WIDTH, dtype=jnp.uint8)
    scales = zeros(WIDTH, WIDTH // 4, dtype=jnp.float8_e4m3fn)
    for to in ("int8", "bfloat16"):
        nvfp4_expand.nvfp4_expand(codes, scales, jnp.ones(()), to=to)
    x = zeros(TOKENS, WIDTH)
    for cache_format in cache.CACHE_FORMATS:
        old = cache.encode(x, cache_format)
        block_stats.block_stats(x, x, old, cache_format=cache_format)
    for heads, head_dim in ((48, 64), (12, 128)):
        angles = np.zeros((TOKENS - 226, head_dim // 2), np.float32)
        part = Heads(
            zeros(1, TOKENS, heads, head_dim),
            norm="layer",
            weight=zeros(head_dim),
            bias=zeros(head_dim),
            rotary=Rotary(angles, angles, 226),
        )
        norm_rope.norm_rope(part)
        norm_rope.quantized_queries(part, 0.1)
        mean = zeros(1, 1, heads, head_dim, dtype=jnp.float32)
        norm_rope.quantized_keys(part, mean, 8192 // head_dim)


def attentions():
    for tokens, heads, head_dim in ((TOKENS, 48, 64), (32_760, 12, 128)):
        x = zeros(1, tokens, heads, head_dim)
        attention.attention(x, x, x, scale=0.1, precision="bf16")
        made = quantize_qkv(x, x, x)
        attention.quantized_attention(made, key_lengths=jnp.ones(1, jnp.int32))


GROUPS = (products, quantizations, other_rows, attentions)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_fit_registers_and_shared_memory(monkeypatch, capability, group):
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "compute_capability", lambda: capability)
    if (capability, group) == ((10, 0), attentions):
        with pytest.raises(NotImplementedError, match="not compiled for B200"):
            attentions()
        return
    found = triton_target.recorded(monkeypatch, group)
    assert found
    for kernel in triton_target.compiled(found, 10 * capability[0] + capability[1]):
        assert kernel.spilled <= SPILLED.get(capability, 0), kernel
        assert kernel.registers <= 255, kernel
        assert kernel.shared <= shared_memory(class_of(capability)), kernel


def operands(m, k, n):
    def side(rows):
        return (
            zeros(rows, k // 2, dtype=jnp.uint8),
            zeros(rows, k // 16, dtype=jnp.float8_e4m3fn),
            jnp.ones(()),
        )

    return (*side(m), *side(n))


@pytest.mark.parametrize("capability", [100, 120])
def test_nvfp4_products_compile_to_block_scaled_instructions(monkeypatch, capability):
    pytest.importorskip("triton")

    def run():
        arrays = operands(256, 512, 256)
        return nvfp4_matmul.nvfp4_matmul(*arrays, EpilogueOperands(), jnp.bfloat16)

    found = triton_target.recorded(monkeypatch, run)
    (kernel,) = triton_target.compiled(found, capability)
    assert kernel.spilled == 0
    assert "tcgen05" in kernel.instructions or "block_scale" in kernel.instructions


def test_real_devices_report_their_own_multiprocessors(monkeypatch):
    device = dataclasses.make_dataclass("Device", ["compute_capability", "core_count"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device("8.9", 76)])
    assert dispatch.compute_capability() == (8, 9)
    assert dispatch.multiprocessors() == 76
