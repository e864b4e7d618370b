"""T5-XXL's linears run by the expanding kernel on Hopper, at real shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pallas_kernels import dispatch
from pallas_kernels.nvfp4_expand import reference as nvfp4_expand_reference
from sixbit_jax.quantizers.nvfp4 import quantize
from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder
from sixbit_jax.text_encoders.t5_config import T5Config
from tests.sixbit_jax.sampling.test_cuda_lowering import kernels, lowered_kernels


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    """The dispatch believes in a Hopper GPU, and the definition may not stand in."""
    monkeypatch.setattr(dispatch, "compute_capability", lambda: dispatch.HOPPER)
    monkeypatch.setattr(
        dispatch, "multiprocessors", lambda: dispatch.HOPPER_MULTIPROCESSORS
    )

    def refused(*_, **__):
        raise AssertionError("a kernel refused its inputs: the definition ran")

    return lambda: monkeypatch.setattr(nvfp4_expand_reference, "nvfp4_expand", refused)


@pytest.mark.parametrize(
    ("kind", "tokens", "masked"), [(T5Encoder, 226, False), (UMT5Encoder, 512, True)]
)
def test_real_encoders_expand_every_linear_by_the_kernel(kind, tokens, masked, hopper):
    config = dataclasses.replace(T5Config(), num_layers=2)
    model = nnx.eval_shape(lambda: quantize(kind(config, rngs=nnx.Rngs(0))))
    hopper()
    graph, state = nnx.split(model)

    def run(state, ids, mask):
        model = nnx.merge(graph, state)
        return encode(model, ids, mask if masked else None, kernels=True)

    shape = (1, tokens)
    traced = jax.jit(run).trace(
        state,
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
    )
    assert traced.out_info.shape == (1, tokens, 4096)
    assert traced.out_info.dtype == jnp.bfloat16
    # q, k, v, o and the three of the feed-forward, in the body of the scan.
    assert kernels(traced.jaxpr) == 7
    assert lowered_kernels(traced) >= 3  # one per shape
