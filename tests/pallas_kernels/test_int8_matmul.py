"""INT8 product: the reference against NumPy, the kernel against the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels import shapes
from pallas_kernels.gemm.config import Tile
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.int8_matmul import int8_matmul, mosaic_gpu
from tests.pallas_kernels.conftest import bfloat16_steps

# Small for the interpreter, but with every loop of the real tiles.
SMALL = Tile(rows=64, columns=64, depth=128, stages=2, store=32)


def operands(m, k, n, *, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.integers(-127, 128, (*lead, m, k)), jnp.int8),
        jnp.asarray(rng.uniform(0.5, 1.5, (*lead, m)) * 1e-2, jnp.float32),
        jnp.asarray(rng.integers(-127, 128, (n, k)), jnp.int8),
        jnp.asarray(rng.uniform(0.5, 1.5, n) * 1e-2, jnp.float32),
    )


def epilogue_arrays(m, n, *, lead=(), seed=1):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    return {
        "bias": normal(n),
        "residual": normal(*lead, m, n),
        "gate": normal(*lead, n),
        "text_gate": normal(*lead, n),
    }


def test_reference_is_the_exact_integer_product_scaled():
    x, x_scales, w, w_scales = operands(5, 256, 24)
    found = int8_matmul(
        x, x_scales, w, w_scales, out_dtype=jnp.float32, implementation="reference"
    )
    sums = np.asarray(x, np.int64) @ np.asarray(w, np.int64).T
    expected = sums * np.asarray(x_scales, np.float64)[:, None] * np.asarray(w_scales)
    np.testing.assert_allclose(found, expected, rtol=3e-7)


def test_reference_epilogue_gates_text_and_video_rows_separately():
    x, x_scales, w, w_scales = operands(6, 128, 16)
    extra = epilogue_arrays(6, 16)
    found = int8_matmul(
        x,
        x_scales,
        w,
        w_scales,
        **extra,
        text_rows=2,
        activation="gelu_tanh",
        out_dtype=jnp.float32,
    )
    y = int8_matmul(x, x_scales, w, w_scales, bias=extra["bias"], out_dtype=jnp.float32)
    y = jax.nn.gelu(y, approximate=True)
    gate = np.where(np.arange(6)[:, None] < 2, extra["text_gate"], extra["gate"])
    expected = np.asarray(extra["residual"], np.float32) + y * gate.astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


EPILOGUES = {
    "scales": {},
    "bias": {"bias": True},
    "gelu": {"bias": True, "activation": "gelu_tanh"},
    "residual": {"residual": True},
    "gated": {"bias": True, "residual": True, "gate": True},
    "two gates": {"residual": True, "gate": True, "text_gate": True, "text_rows": 66},
}


@pytest.mark.parametrize(
    ("name", "split"),
    [(name, "alternate") for name in EPILOGUES]
    + [("two gates", "rows"), ("two gates", "columns")],
)
def test_kernel_equals_reference_in_the_interpreter(name, split):
    m, k, n = 139, 384, 96
    x = operands(m, k, n)
    wanted = dict(EPILOGUES[name])
    extra = {
        key: value
        for key, value in epilogue_arrays(m, n).items()
        if wanted.pop(key, False)
    }
    tile = Tile(**{**SMALL.__dict__, "split": split})
    found = mosaic_gpu.int8_matmul(
        *x,
        EpilogueOperands(**extra, **wanted),
        jnp.bfloat16,
        interpret=True,
        tile=tile,
    )
    expected = int8_matmul(*x, **extra, **wanted, implementation="reference")
    assert found.shape == expected.shape == (m, n)
    assert bfloat16_steps(found, expected) <= 1


def test_kernel_sums_are_exact_integers():
    x, _, w, _ = operands(136, 256, 64)
    found = mosaic_gpu.int8_matmul(
        x,
        jnp.ones(136),
        w,
        jnp.ones(64),
        EpilogueOperands(),
        jnp.float32,
        interpret=True,
        tile=SMALL,
    )
    np.testing.assert_array_equal(
        np.asarray(found, np.int64), np.asarray(x, np.int64) @ np.asarray(w, np.int64).T
    )


def test_kernel_gates_each_batch_entry_by_its_own_vectors():
    lead, m, n = (2,), 72, 64
    x = operands(m, 128, n, lead=lead)
    extra = epilogue_arrays(m, n, lead=lead)
    wanted = EpilogueOperands(**extra, text_rows=9)
    found = mosaic_gpu.int8_matmul(*x, wanted, jnp.bfloat16, interpret=True, tile=SMALL)
    expected = int8_matmul(*x, **extra, text_rows=9, implementation="reference")
    assert bfloat16_steps(found, expected) <= 1


def test_kernel_keeps_a_nan_row_to_itself():
    x, x_scales, w, w_scales = operands(70, 128, 64)
    x_scales = x_scales.at[3].set(jnp.nan)
    found = mosaic_gpu.int8_matmul(
        x,
        x_scales,
        w,
        w_scales,
        EpilogueOperands(activation="gelu_tanh"),
        jnp.bfloat16,
        interpret=True,
        tile=SMALL,
    )
    bad = np.isnan(np.asarray(found, np.float32))
    assert bad[3].all()
    assert not np.delete(bad, 3, axis=0).any()


def real_shapes():
    """One of each layer of the headline model; all the others are slow together."""
    for linear in shapes.ALL_LINEARS:
        quick = linear.model == "cogvideox-2b"
        yield pytest.param(
            linear,
            id=f"{linear.model}-{linear.layer}",
            marks=() if quick else pytest.mark.slow,
        )


@pytest.mark.parametrize("linear", list(real_shapes()))
def test_every_real_shape_lowers_for_cuda(linear, lower_for_cuda):
    m, k, n = linear.m, linear.k, linear.n
    spec = jax.eval_shape(lambda: (jnp.zeros((m, k), jnp.int8), jnp.zeros(m)))
    weight = jax.eval_shape(lambda: (jnp.zeros((n, k), jnp.int8), jnp.zeros(n)))
    extra = {
        "ff_up": {"activation": "gelu_tanh"},
        "attn_out": {"residual": jax.ShapeDtypeStruct((m, n), jnp.bfloat16)},
    }.get(linear.layer, {})
    activation = extra.pop("activation", None)

    def call(x, w, extra):
        return int8_matmul(
            *x, *w, **extra, activation=activation, implementation="mosaic_gpu"
        )

    assert "mosaic_gpu" in lower_for_cuda(call, spec, weight, extra)


def test_lowers_inside_scan_and_switch_over_stacked_weights(lower_for_cuda):
    layers, m, d = 3, 136, 256
    weights = jnp.zeros((layers, d, d), jnp.int8)
    scales = jnp.zeros((layers, d))
    routes = jnp.zeros((layers,), jnp.int32)

    def forward(stream, weights, scales, routes):
        def block(stream, layer):
            w, w_scales, route = layer

            def int8(stream):
                x = jnp.clip(jnp.round(stream), -127, 127).astype(jnp.int8)
                ones = jnp.ones(m, jnp.float32)
                return int8_matmul(
                    x, ones, w, w_scales, residual=stream, implementation="mosaic_gpu"
                )

            def keep(stream):
                return stream

            return lax.switch(route, [int8, keep], stream), None

        return lax.scan(block, stream, (weights, scales, routes))[0]

    stream = jnp.zeros((m, d), jnp.bfloat16)
    assert "mosaic_gpu" in lower_for_cuda(forward, stream, weights, scales, routes)


def test_refuses_what_it_cannot_do_with_the_reason():
    x, x_scales, w, w_scales = operands(8, 64, 12)
    with pytest.raises(NotImplementedError, match=r"K must be .* found 64.*N must be"):
        int8_matmul(x, x_scales, w, w_scales, implementation="mosaic_gpu")


def test_mismatched_shapes_name_both():
    x, x_scales, w, w_scales = operands(8, 128, 16)
    with pytest.raises(ValueError, match=r"w_scales.*\(16,\).*\(15,\)"):
        int8_matmul(x, x_scales, w, w_scales[:15])
    with pytest.raises(ValueError, match=r"residual must be \(8, 16\), found \(8, 8\)"):
        int8_matmul(x, x_scales, w, w_scales, residual=jnp.zeros((8, 8)))


def test_text_gate_and_text_rows_belong_together():
    x, x_scales, w, w_scales = operands(8, 128, 16)
    with pytest.raises(ValueError, match="text_gate and text_rows"):
        int8_matmul(x, x_scales, w, w_scales, gate=jnp.ones(16), text_rows=3)
