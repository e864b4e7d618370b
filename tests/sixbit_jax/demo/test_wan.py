"""The small Wan: its size and first prediction, training in two calls, its files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from convert import convert
from sixbit_jax.checkpoint import load
from sixbit_jax.demo import recipe, train
from sixbit_jax.demo.export import read_checkpoint, write_checkpoint
from sixbit_jax.demo.state_file import load_state, save_state
from sixbit_jax.demo.wan import WAN
from sixbit_jax.models.network import PromptInputs

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
    "patch_size": [1, 16, 16],
}
NUMBERS = recipe.Recipe(
    batch=4,
    learning_rate=3e-3,
    warmup=2,
    high_noise_share=0.0,
    timestep_shift=3.0,
    dtype="float32",
)


@pytest.fixture(scope="module")
def small_model():
    return WAN.new(0, SMALL)


def test_the_full_network_has_the_promised_size():
    shapes = jax.eval_shape(lambda: nnx.state(WAN.new(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 8e6 < count < 10e6
    assert WAN.scheduler().prediction_type == "flow_prediction"


def test_the_first_prediction_is_zero_and_blocks_are_the_identity(small_model):
    latents, words = jnp.ones((1, 13, 3, 32, 32)), jnp.ones((1, 16, 128))
    output = small_model(latents, words, jnp.array([500.0]))
    np.testing.assert_array_equal(output, 0)
    prompt = small_model.prepare_prompt(PromptInputs(words), dtype=jnp.float32)
    tokens, conditioning = small_model.embed(latents, prompt, jnp.array([500.0]))
    graph, params = nnx.split(small_model.blocks)
    first = nnx.merge(graph, jax.tree.map(lambda x: x[0], params))
    layer = jax.tree.map(lambda x: x[0], conditioning.per_layer["blocks"])
    after, _ = first(tokens, conditioning._replace(per_layer=layer))
    np.testing.assert_array_equal(after, tokens)


def test_training_lowers_the_loss_and_its_state_is_read_back(small_model, tmp_path):
    graph, state = recipe.init_state(small_model, NUMBERS)
    training = train.Training(graph, state, NUMBERS, WAN)
    train.train(training, steps=60, steps_per_call=20, cosine=(0.0, 0.5))
    losses = [record["loss"] for record in training.records]
    # Predicting zero costs the mean square of noise and videos, 1 + 0.6.
    assert losses[0] > 1.0
    assert losses[-1] < 0.9 * losses[0]

    save_state(tmp_path / "state", training.state, max_bytes=40_000)
    files = sorted((tmp_path / "state").iterdir())
    assert max(file.stat().st_size for file in files) <= 40_000
    assert len(files) > 2
    back = load_state(tmp_path / "state", small_model, NUMBERS)
    jax.tree.map(np.testing.assert_array_equal, back.params, training.state.params)
    jax.tree.map(np.testing.assert_array_equal, back.average, training.state.params)
    assert int(back.step) == 60

    with pytest.raises(ValueError, match="expected the 9"):
        load_state(tmp_path / "state", WAN.new(0), NUMBERS)


def test_a_second_call_is_given_its_part_of_the_cosine(small_model, monkeypatch):
    graph, state = recipe.init_state(small_model, NUMBERS)
    spans = []

    def no_steps(graph, numbers, scheduler, count, *, devices):
        assert devices == jax.devices()[: NUMBERS.batch]

        def run(state, span):
            spans.append(span)
            return state._replace(step=state.step + count), recipe.StepRecord(
                jnp.ones(count), jnp.ones(count)
            )

        return run

    monkeypatch.setattr(train, "make_train_steps", no_steps)
    training = train.Training(graph, state._replace(step=60), NUMBERS, WAN)
    train.train(training, steps=40, steps_per_call=20, cosine=(0.5, 1.0))
    assert [tuple(map(int, span[:2])) for span in spans] == [(60, 40), (60, 40)]
    assert spans[0].cosine == (0.5, 1.0)


def test_the_written_checkpoint_converts_and_reads_back(tmp_path):
    state = nnx.state(WAN.new(0, SMALL))
    leaves, structure = jax.tree.flatten(state)
    # Distinct values everywhere, so that a swapped pair of tensors is seen.
    random = np.random.default_rng(0)
    leaves = [random.standard_normal(leaf.shape, np.float32) / 8 for leaf in leaves]
    rounded = [leaf.astype(jnp.bfloat16).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in rounded])
    root = tmp_path / "checkpoint"
    write_checkpoint(params, root, overrides=SMALL, demo=WAN)

    index = json.loads((root / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    tensors = {}
    for file in (root / "transformer").glob("*.safetensors"):
        tensors |= load_file(file)
    assert "blocks.1.attn2.to_out.0.weight" in tensors
    assert tensors["blocks.0.ffn.net.2.weight"].shape == (32, 64)

    back = read_checkpoint(root, state, WAN)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    convert(root, tmp_path / "model", weights="keep")
    model, header = load(tmp_path / "model")
    found = nnx.to_flat_state(nnx.state(model))
    for (_, variable), (_, expected) in zip(
        found, nnx.to_flat_state(params), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(variable.get_value(), np.float32),
            expected.get_value(),
        )
    assert header is not None
