"""Shared helpers of the kernel tests."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import pytest

# Triton decides when it is imported whether kernels run in its interpreter. Tests that
# compile kernels do so in processes of their own.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def lower_for_cuda():
    """Lowers a function for CUDA on a machine without a GPU and returns the text."""

    def lower(function, *arguments, **keywords) -> str:
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (arguments, keywords)
        )
        traced = jax.jit(function).trace(*shapes[0], **shapes[1])
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


def bfloat16_steps(x: jax.Array, y: jax.Array) -> int:
    """Largest distance of two bfloat16 arrays in units of the last place.

    Magnitudes below 2^-100 count as zero: near the subnormals machines differ.
    """

    def ordered(value):
        value = jnp.where(jnp.abs(value) < 2.0**-100, 0, value)
        bits = jax.lax.bitcast_convert_type(value, jnp.int16).astype(jnp.int32)
        return jnp.where(bits < 0, -32768 - bits, bits)

    return int(jnp.max(jnp.abs(ordered(x) - ordered(y))))
