"""The Triton kernel of `int8_matmul` against its definition, in the interpreter."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.int8_matmul import int8_matmul, triton
from tests.pallas_kernels.conftest import bfloat16_steps
from tests.pallas_kernels.test_int8_matmul import EPILOGUES, epilogue_arrays, operands
from tests.pallas_kernels.triton_interpreter import interpreted

SMALL = triton.Tile(rows=64, columns=32, depth=64, warps=4, stages=2, group=2)


def run(x, wanted, dtype=jnp.bfloat16):
    with interpreted():
        return triton.int8_matmul(*x, wanted, dtype, tile=SMALL)


@pytest.mark.parametrize("name", EPILOGUES)
def test_kernel_equals_reference(name):
    m, k, n = 139, 208, 88
    x = operands(m, k, n)
    wanted = dict(EPILOGUES[name])
    extra = {
        key: value
        for key, value in epilogue_arrays(m, n).items()
        if wanted.pop(key, False)
    }
    found = run(x, EpilogueOperands(**extra, **wanted))
    expected = int8_matmul(*x, **extra, **wanted, implementation="reference")
    assert found.shape == expected.shape == (m, n)
    assert bfloat16_steps(found, expected) <= 1


def test_wide_tiles_finish_in_two_parts():
    m, k, n = 70, 96, 139
    wide = SMALL._replace(columns=128)
    x = operands(m, k, n)
    extra = epilogue_arrays(m, n)
    wanted = EpilogueOperands(**extra, text_rows=9)
    with interpreted():
        found = triton.int8_matmul(*x, wanted, jnp.bfloat16, tile=wide)
    expected = int8_matmul(*x, **extra, text_rows=9, implementation="reference")
    assert bfloat16_steps(found, expected) <= 1


def test_kernel_sums_are_exact_integers():
    x, _, w, _ = operands(70, 256, 40)
    found = run((x, jnp.ones(70), w, jnp.ones(40)), EpilogueOperands(), jnp.float32)
    np.testing.assert_array_equal(
        np.asarray(found, np.int64), np.asarray(x, np.int64) @ np.asarray(w, np.int64).T
    )


def test_kernel_gates_each_batch_entry_by_its_own_vectors():
    lead, m, n = (2,), 37, 40
    x = operands(m, 128, n, lead=lead)
    extra = epilogue_arrays(m, n, lead=lead)
    found = run(x, EpilogueOperands(**extra, text_rows=9))
    expected = int8_matmul(*x, **extra, text_rows=9, implementation="reference")
    assert bfloat16_steps(found, expected) <= 1


def test_kernel_keeps_a_nan_row_to_itself():
    x, x_scales, w, w_scales = operands(70, 128, 40)
    x_scales = x_scales.at[3].set(jnp.nan)
    found = run((x, x_scales, w, w_scales), EpilogueOperands(activation="gelu_tanh"))
    bad = np.isnan(np.asarray(found, np.float32))
    assert bad[3].all()
    assert not np.delete(bad, 3, axis=0).any()


def test_refuses_what_it_cannot_do_with_the_reason():
    with pytest.raises(NotImplementedError, match=r"K a multiple of 16.*\(8, 24\)"):
        int8_matmul(*operands(8, 24, 12), implementation="triton")
