"""A small model, and the directory it is saved in."""

import jax
import pytest
from flax import nnx

from sixbit_jax import checkpoint
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from tests.sixbit_jax.checkpoint.directories import CONFIG


@pytest.fixture(scope="module")
def model():
    return CogVideoXTransformer(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def quantized(model):
    """A copy with NVFP4 weights in every block linear of the feed-forward part."""
    graph, state = nnx.split(model)
    copy = nnx.merge(graph, jax.tree.map(lambda x: x, state))
    quantize = jax.jit(lambda w: NVFP4Array.quantize(w, rotation=64))
    for linear in (copy.transformer_blocks.ff.up, copy.transformer_blocks.ff.down):
        linear.weight = nnx.Param(quantize(linear.weight[...]))
    return copy


@pytest.fixture
def saved(tmp_path, model):
    checkpoint.save(model, tmp_path / "m", scheduler={"_class_name": "S"})
    return tmp_path / "m"
