"""What ptxas makes of the kernels: tensor-core instructions, no spilled registers."""

from __future__ import annotations

import re

import pytest

from pallas_kernels.attention import shapes as attention_shapes
from pallas_kernels.block_stats import shapes as stats_shapes
from pallas_kernels.row_tiles import shapes as row_shapes
from tests.pallas_kernels.hopper_target import compiled

_INT8 = """
from pallas_kernels.int8_matmul import int8_matmul
compile(
    lambda x, s, w, t, b: int8_matmul(
        x, s, w, t, bias=b, {options} implementation="mosaic_gpu"
    ),
    shape(({m}, 3072), jnp.int8), shape(({m},), jnp.float32),
    shape((9216, 3072), jnp.int8), shape((9216,), jnp.float32),
    shape((9216,), jnp.bfloat16),
)
"""
_BFLOAT16 = """
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.gemm.linear import linear
compile(
    lambda x, w, s: linear(
        x, w, row_scale=None, column_scale=None, scalar_scale=s,
        operands=EpilogueOperands(), out_dtype=jnp.bfloat16,
    ),
    shape((17776, 3072), jnp.bfloat16), shape((3072, 3072), jnp.bfloat16),
    shape((), jnp.float32),
)
"""
_EXPAND = """
from pallas_kernels.nvfp4_expand import nvfp4_expand
compile(
    lambda c, b, t: nvfp4_expand(c, b, t, to={to!r}, implementation="mosaic_gpu"),
    shape((3072, {k} // 2), jnp.uint8), shape((3072, {k} // 16), jnp.float8_e4m3fn),
    shape((), jnp.float32),
)
"""
_ROWS = """
from benchmarks.kernels.elementwise import (
    run_nvfp4, run_stats, site_inputs, stats_inputs
)
from pallas_kernels.block_stats import mosaic_gpu as stats_kernel
from pallas_kernels.quantize_nvfp4 import mosaic_gpu as nvfp4_kernel
def shapes(make, *options):
    found = jax.eval_shape(lambda: make(*options, 0))
    return jax.tree.map(lambda a: shape(a.shape, a.dtype), found)
"""
_QUANTIZE_NVFP4 = (
    _ROWS
    + """
compile(
    lambda *a: run_nvfp4(nvfp4_kernel, {kind!r}, 2e-3, *a),
    *shapes(site_inputs, {k}, {kind!r}),
)
"""
)
_BLOCK_STATS = (
    _ROWS
    + """
compile(
    lambda *a: run_stats(stats_kernel, {cache_format!r}, *a),
    *shapes(stats_inputs, {k}, {cache_format!r}),
)
"""
)

_ATTENTION = """
import functools
from pallas_kernels.attention import mosaic_gpu, quantize_qkv
q = jax.ShapeDtypeStruct((1, {tokens}, {heads}, {head_dim}), jnp.bfloat16)
made = jax.eval_shape(functools.partial(quantize_qkv, scale=0.125), q, q, q)
made = jax.tree.map(lambda a: shape(a.shape, a.dtype), made)
compile(functools.partial(mosaic_gpu.quantized_attention, guard=False), made)
"""

_SPARSE_ATTENTION = """
import functools
from pallas_kernels.attention import (
    block_grid, centroids, choose, mosaic_gpu, quantize_qkv, quantized_centroids
)
q = jax.ShapeDtypeStruct((1, {tokens}, {heads}, {head_dim}), jnp.bfloat16)
def shaped(tree):
    return jax.tree.map(lambda a: shape(a.shape, a.dtype), tree)
grid = block_grid(q.shape, precision={precision!r})
if {precision!r} == "int8":
    made = jax.eval_shape(functools.partial(quantize_qkv, scale=0.125), q, q, q)
    means = jax.eval_shape(lambda made: quantized_centroids(made, grid), made)
    attend = functools.partial(mosaic_gpu.quantized_attention, guard=False)
    operands = (shaped(made),)
else:
    means = jax.eval_shape(lambda q: centroids(q, q, q, grid), q)
    attend = functools.partial(
        mosaic_gpu.attention, scale=0.125, precision="bf16", guard=False
    )
    operands = (shaped(q),) * 3
selection = jax.eval_shape(
    lambda means: choose.by_threshold(means, grid, 0.5), means
)
compile(lambda s, *a: attend(*a, selection=s), shaped(selection), *operands)
"""


def spilled_bytes(report: str) -> int:
    found = re.findall(r"(\d+) bytes spill stores", report)
    assert found, report
    return max(map(int, found))


@pytest.mark.parametrize("m", [17776, 17777])
@pytest.mark.parametrize("options", ["", 'activation="gelu_tanh",'])
def test_int8_matmul_uses_integer_wgmma_without_spills(m, options, tmp_path):
    report, code = compiled(_INT8.format(m=m, options=options), tmp_path)
    assert spilled_bytes(report) == 0
    assert not code or "IGMMA" in code


def test_bfloat16_product_uses_wgmma_without_spills(tmp_path):
    report, code = compiled(_BFLOAT16, tmp_path)
    assert spilled_bytes(report) == 0
    assert not code or "HGMMA" in code


@pytest.mark.parametrize("to", ["int8", "bfloat16"])
@pytest.mark.parametrize("k", [1920, 13824])
def test_expansion_keeps_rows_in_registers(to, k, tmp_path):
    report, code = compiled(_EXPAND.format(to=to, k=k), tmp_path)
    assert spilled_bytes(report) == 0
    assert "LDL" not in code
    assert not code or "STG.E.128" in code


@pytest.mark.parametrize(("k", "kind"), row_shapes.COMPILED)
def test_nvfp4_quantization_keeps_rows_in_registers(k, kind, tmp_path):
    report, code = compiled(_QUANTIZE_NVFP4.format(k=k, kind=kind), tmp_path)
    assert spilled_bytes(report) == 0
    # One conversion for two values, towards zero: what the codes are read from.
    assert not code or code.count("F2FP.F16.F32.PACK_AB.RZ") == 32
    assert not code or "HMMA.16816.F32" in code


@pytest.mark.parametrize("k", stats_shapes.CHANNELS)
@pytest.mark.parametrize("cache_format", ["bf16", "int8", "nvfp4"])
def test_block_statistics_keep_rows_in_registers(k, cache_format, tmp_path):
    program = _BLOCK_STATS.format(k=k, cache_format=cache_format)
    report, code = compiled(program, tmp_path)
    assert spilled_bytes(report) == 0
    assert "LDL" not in code


@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "allowed"),
    # Three warpgroups and 128 keys: a few addresses are spilled outside the loop.
    [(*s[2:], n) for s, n in zip(attention_shapes.COMPILED, (20, 0, 0), strict=True)],
)
def test_8_bit_attention_keeps_scores_in_registers(
    tokens, heads, head_dim, allowed, tmp_path
):
    program = _ATTENTION.format(tokens=tokens, heads=heads, head_dim=head_dim)
    report, code = compiled(program, tmp_path)
    assert spilled_bytes(report) <= allowed
    assert not code or ("IGMMA" in code and "HGMMA" in code)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "allowed"),
    [(*s[2:], n) for s, n in zip(attention_shapes.COMPILED, (24, 0, 0), strict=True)],
)
def test_attention_to_chosen_blocks_spills_no_more_than_dense(
    precision, tokens, heads, head_dim, allowed, tmp_path
):
    program = _SPARSE_ATTENTION.format(
        precision=precision, tokens=tokens, heads=heads, head_dim=head_dim
    )
    report, code = compiled(program, tmp_path)
    assert spilled_bytes(report) <= allowed
    assert not code or "HGMMA" in code
