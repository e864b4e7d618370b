"""T5 and UMT5 against transformers, in float32 and with stored weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.formats import NVFP4Array, UniformArray, rotate
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.layers import Embedding
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder, relative_buckets
from sixbit_jax.text_encoders.t5_config import T5Config
from tests.golden import text_cases
from tests.sixbit_jax.text_encoders.encoders import golden_model, relative_l2

NAMES = [*text_cases.names("t5"), *text_cases.names("umt5")]

jitted = nnx.jit(encode, static_argnames=("dtype", "kernels"))


@nnx.jit
def forward(model, ids, mask):
    return model(ids, mask)


def with_working_scores(model):
    """Scores of unit variance, as T5's initialisation makes them.

    The golden weights leave 1 / sqrt(d_kv) out: their softmax picks single tokens and
    turns small errors of scores into large ones of the output.
    """
    config = model.config
    weight = model.blocks.attention.q.weight
    weight.set_value(weight.get_value() / np.sqrt(config.d_kv))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_float32_output_equals_transformers(name):
    case = text_cases.load(name)
    output = forward(golden_model(case), case.ids(), case.mask())
    assert relative_l2(output, case.output) < 1e-5


def test_golden_cases_have_a_residual_stream_as_large_as_the_published_models():
    for name in ("t5_large", "umt5_large"):
        assert text_cases.load(name).largest > 1e5


def test_buckets_equal_transformers_at_every_distance():
    expected = np.load(text_cases.FOLDER / "buckets.npy")
    found = relative_buckets(601, num_buckets=32, max_distance=128)
    # Row 0 has the distances 0 .. 600, column 0 the distances 0 .. -600.
    assert np.array_equal(found[0], expected[600:])
    assert np.array_equal(found[:, 0], expected[600::-1])


def test_without_a_mask_padding_is_read_and_all_rows_are_used():
    case = text_cases.load("t5")
    model, ids = golden_model(case), case.ids()
    whole = encode(model, ids, None, jnp.float32)
    assert relative_l2(whole, case.output) < 1e-5
    changed = ids.copy()
    changed[:, -1] = (ids[:, -1] + 1) % 90
    other = encode(model, changed, None, jnp.float32)
    assert relative_l2(other[:, 0], whole[:, 0]) > 1e-3


def test_with_a_mask_padding_is_not_read_and_its_rows_are_zeros():
    case = text_cases.load("umt5")
    model, ids, mask = golden_model(case), case.ids(), case.mask()
    output = np.asarray(encode(model, ids, mask, jnp.float32))
    assert (output[~mask] == 0).all()
    assert relative_l2(output[mask], case.output[mask]) < 1e-5
    changed = np.where(mask, ids, 5)
    again = np.asarray(encode(model, changed, mask, jnp.float32))
    assert np.array_equal(again, output)


def test_bfloat16_keeps_small_terms_of_a_large_residual_stream():
    """The stream is float32: only products are rounded to bfloat16."""
    case = text_cases.load("umt5_large")
    model = with_working_scores(golden_model(case))
    exact = encode(model, case.ids(), case.mask(), jnp.float32)
    output = jitted(model, case.ids(), case.mask(), dtype=jnp.bfloat16)
    mask = case.mask()
    assert output.dtype == jnp.bfloat16
    assert relative_l2(output[mask], exact[mask]) < 0.02


@pytest.mark.parametrize("name", ["t5", "umt5"])
@pytest.mark.parametrize(
    ("recipe", "kind", "bound"),
    [
        (UniformRecipe(bits=8, grid="minmax", rotation=32), UniformArray, 0.04),
        (NVFP4Recipe(rotation=32), NVFP4Array, 0.45),
    ],
)
def test_linears_run_from_stored_weights(name, recipe, kind, bound):
    case = text_cases.load(name)
    plain = with_working_scores(golden_model(case))
    model = quantize(plain, recipe)
    stored = {
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(nnx.state(model))
        if isinstance(leaf.get_value(), kind)
    }
    ff, attention = ("wi_0", "wi_1", "wo"), ("q", "k", "v", "o")
    assert stored == {f"blocks.ff.{n}.weight" for n in ff} | {
        f"blocks.attention.{n}.weight" for n in attention
    }
    exact = encode(plain, case.ids(), case.mask(), jnp.float32)
    output = jitted(model, case.ids(), case.mask(), dtype=jnp.float32)
    assert 1e-4 < relative_l2(output, exact) < bound
    # The same numbers from the matrices that the stored weights stand for; the
    # Hadamard is its own inverse.
    flat = dict(nnx.to_flat_state(nnx.state(plain)))
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        value = leaf.get_value()
        if isinstance(value, kind):
            flat[path].set_value(rotate(value.dequantize(), value.rotation))
    nnx.update(plain, nnx.from_flat_state(flat))
    dense = encode(plain, case.ids(), case.mask(), jnp.float32)
    assert relative_l2(output, dense) < 1e-5


@pytest.mark.parametrize(
    "store",
    [
        lambda w: NVFP4Array.quantize(w),
        lambda w: NVFP4Array.quantize(w, rotation=16),
        lambda w: UniformArray.quantize(w, bits=8),
    ],
)
def test_rows_of_a_stored_table_are_those_of_the_whole_table(store):
    table = Embedding(24, 32, rngs=nnx.Rngs(0))
    plain = table.weight[...]
    table.weight = nnx.Param(store(plain))
    ids = jnp.array([[3, 23, 0], [7, 7, 1]])
    assert relative_l2(table(ids), plain[ids]) < 0.15
    whole = table(jnp.arange(24))
    assert np.array_equal(table(ids), whole[ids])


def test_parameter_counts_of_the_published_models():
    """Counts of T5 v1.1-XXL's and UMT5-XXL's encoders; nothing is allocated."""
    published = {
        T5Encoder: (T5Config(), 4_762_310_656),
        UMT5Encoder: (T5Config(vocab_size=256384), 5_680_910_336),
    }
    for kind, (config, count) in published.items():
        abstract = nnx.eval_shape(lambda k=kind, c=config: k(c, rngs=nnx.Rngs(0)))
        leaves = nnx.to_flat_state(nnx.state(abstract))
        found = sum(np.prod(leaf.get_value().shape) for _, leaf in leaves)
        assert found == count


def test_config_lists_everything_that_does_not_fit():
    with pytest.raises(ValueError) as error:
        T5Config.from_dict({"feed_forward_proj": "relu", "depth": 3, "d_model": 8})
    message = str(error.value)
    assert "feed_forward_proj: expected 'gated-gelu', found 'relu'" in message
    assert "depth: not a field of a T5 config" in message
    with pytest.raises(ValueError) as error:
        T5Config(d_model=0, num_layers=2.5, layer_norm_epsilon=True)
    message = str(error.value)
    assert "d_model: expected a whole number from 1 to 1048576, found 0" in message
    assert "num_layers: expected a whole number from 1 to 1024, found 2.5" in message
    assert "layer_norm_epsilon: expected a number from 0 to 1, found True" in message
    with pytest.raises(ValueError, match=r"num_buckets: expected a multiple of 4"):
        T5Config(relative_attention_num_buckets=30)


def test_config_round_trips():
    config = T5Config.from_dict(text_cases.load("umt5").config)
    assert T5Config.from_dict(config.to_dict()) == config


def test_ids_and_mask_of_other_shapes_are_refused():
    model = golden_model(text_cases.load("t5"))
    with pytest.raises(ValueError, match=r"ids: expected integers \[batch, T\]"):
        encode(model, jnp.zeros((2, 3)), None)
    with pytest.raises(ValueError, match=r"mask: expected the shape of the ids"):
        encode(model, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 4), bool))


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_kernels_may_be_asked_for_and_give_the_same_embeddings(name):
    case = text_cases.load(name)
    model = quantize(with_working_scores(golden_model(case)), NVFP4Recipe(rotation=32))
    given = (case.ids(), case.mask())
    plain = jitted(model, *given, dtype=jnp.bfloat16)
    kernels = jitted(model, *given, dtype=jnp.bfloat16, kernels=True)
    assert relative_l2(kernels, plain) < 1e-2
