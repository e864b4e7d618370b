"""Models written to directories and read again."""

import dataclasses
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from sixbit_jax import checkpoint
from sixbit_jax.checkpoint import CheckpointError, CheckpointWriter
from sixbit_jax.checkpoint import header as header_module
from sixbit_jax.checkpoint import model as model_module
from sixbit_jax.checkpoint.placement import Placement
from sixbit_jax.formats import UniformArray
from tests.sixbit_jax.checkpoint.directories import (
    CONFIG,
    as_an_earlier_version_wrote_it,
    same,
    state_of,
)


def test_a_model_survives_a_round_trip(saved, model):
    loaded, header = checkpoint.load(saved)
    same(loaded, model)
    assert loaded.config == CONFIG
    assert header.scheduler == {"_class_name": "S"}
    assert header.num_parameters == sum(x.size for x in state_of(model).values())


def test_nvfp4_weights_survive_and_run(tmp_path, quantized):
    header = checkpoint.save(quantized, tmp_path / "q", quantization={"weights": "x"})
    loaded, read = checkpoint.load(tmp_path / "q")
    same(loaded, quantized)
    assert read == header
    weight = loaded.transformer_blocks.ff.up.weight.get_value()
    assert weight.rotation == 64
    assert weight.shape == (3, 256, 64)
    args = (jnp.ones((1, 1, 2, 4, 4)), jnp.ones((1, 4, 32)), jnp.ones((1,)))
    np.testing.assert_array_equal(loaded(*args), quantized(*args))


def test_a_dtype_casts_what_is_not_nvfp4(tmp_path, quantized):
    checkpoint.save(quantized, tmp_path / "q")
    loaded, _ = checkpoint.load(tmp_path / "q", dtype=jnp.bfloat16)
    weight = loaded.transformer_blocks.ff.up.weight.get_value()
    assert weight.tensor_scale.dtype == jnp.float32
    assert weight.block_scales.dtype == jnp.float8_e4m3fn
    for part in (loaded.proj_out.weight, loaded.transformer_blocks.attn1.to_q.bias):
        assert part[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        loaded.proj_out.weight[...], quantized.proj_out.weight[...].astype(jnp.bfloat16)
    )


def test_blocks_are_stacked_in_place(saved):
    """XLA aliases the stacks with the result: loading never holds two copies."""
    stack = checkpoint.read_header(saved).stacks["transformer_blocks"]
    whole = model_module._allocate(stack, None, Placement(None))
    layer = jax.tree.map(lambda x: x[0], whole)
    compiled = model_module._insert.lower(whole, layer, jnp.int32(0)).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(whole))
    assert compiled.memory_analysis().alias_size_in_bytes == size


def test_plain_orbax_reads_an_item(saved, model):
    with ocp.PyTreeCheckpointer() as orbax:
        tree = orbax.restore(saved / "transformer_blocks.2")
    expected = model.transformer_blocks.attn1.to_q.weight[...][2]
    np.testing.assert_array_equal(tree["attn1"]["to_q"]["weight"], expected)


def test_saving_and_loading_leave_no_threads(tmp_path, model):
    before = threading.active_count()
    checkpoint.save(model, tmp_path / "m")
    checkpoint.load(tmp_path / "m")
    assert threading.active_count() <= before


def test_large_blocks_are_split_into_items(tmp_path, monkeypatch, model):
    monkeypatch.setattr(header_module, "_ITEM_BYTES", 1 << 16)
    header = checkpoint.save(model, tmp_path / "m")
    items = list(header.items())
    assert len(items) > 3 * 3
    assert len({item.name for item in items}) == len(items)
    # One parameter may be larger than the limit, and is then alone.
    sizes = [sum(s.nbytes for s in item.parameters.values()) for item in items]
    for item, size in zip(items, sizes, strict=True):
        assert size <= 1 << 16 or len(item.parameters) == 1
    loaded, _ = checkpoint.load(tmp_path / "m")
    same(loaded, model)


def test_the_header_survives_json(saved):
    header = checkpoint.read_header(saved)
    (saved / "sixbit.json").write_text(header.to_json())
    assert checkpoint.read_header(saved) == header


def test_saving_over_something_is_refused(saved, model):
    with pytest.raises(CheckpointError, match="expected a new path"):
        checkpoint.save(model, saved)
    assert checkpoint.read_header(saved).scheduler == {"_class_name": "S"}


def test_an_unfinished_directory_never_appears(tmp_path, saved):
    header = checkpoint.read_header(saved)
    with (
        pytest.raises(CheckpointError, match="items never written"),
        CheckpointWriter(tmp_path / "new", header),
    ):
        pass
    with (
        pytest.raises(KeyboardInterrupt),
        CheckpointWriter(tmp_path / "new", header),
    ):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_writer_refuses_other_values_than_announced(tmp_path, saved):
    header = checkpoint.read_header(saved)
    item = list(header.items())[-1]
    good = {k: np.zeros(s.shape, s.dtype) for k, s in item.parameters.items()}
    wrong_dtype = good | {"proj_out.bias": np.zeros(8, np.float16)}
    for values, message in (
        ({}, r"item rest: expected \["),
        (wrong_dtype, r"value float32\[8\], found value float16\[8\]"),
    ):
        with (
            pytest.raises(CheckpointError, match=message),
            CheckpointWriter(tmp_path / "new", header) as writer,
        ):
            writer.write(item, values)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_uniform_weights_come_back_with_their_bits_and_rotation(tmp_path, quantized):
    graph, state = nnx.split(quantized)
    copy = nnx.merge(graph, jax.tree.map(lambda x: x, state))
    linear = copy.transformer_blocks.attn1.to_q
    weight = linear.weight[...]
    linear.weight = nnx.Param(UniformArray.quantize(weight, bits=3, rotation=32))
    header = checkpoint.save(copy, tmp_path / "u")
    found, _ = checkpoint.load(tmp_path / "u")
    same(found, copy)
    loaded = found.transformer_blocks.attn1.to_q.weight.get_value()
    assert (loaded.bits, loaded.rotation, loaded.shape) == (3, 32, weight.shape)
    spec = header.stacks["transformer_blocks"].parameters["attn1.to_q.weight"]
    assert spec.nbytes == 64 * 64 * 3 // 8 + 5 * 64


def test_a_spec_refuses_what_cannot_be_stored():
    with pytest.raises(CheckpointError, match="'int8'"):
        checkpoint.ParameterSpec((4, 16), "int8")
    with pytest.raises(CheckpointError, match="K a multiple of 16"):
        checkpoint.ParameterSpec((4, 24), "nvfp4")


def test_the_summary_counts_bytes_by_dtype(tmp_path, quantized):
    header = checkpoint.save(quantized, tmp_path / "q", quantization={"weights": "x"})
    summary = checkpoint.summarize(tmp_path / "q")
    values = 2 * 3 * 256 * 64
    assert summary.values_by_dtype["nvfp4"] == values
    assert summary.bytes_by_dtype["nvfp4"] == values * 9 // 16 + 2 * 3 * 4
    assert summary.memory_bytes == sum(x.nbytes for x in state_of(quantized).values())
    assert summary.disk_bytes >= summary.memory_bytes
    assert summary.num_parameters == header.num_parameters
    assert summary.memory_ratio == 2 * summary.num_parameters / summary.memory_bytes
    text = str(summary)
    for part in ("CogVideoXTransformer3DModel", "attn_in", "blocks       3", "nvfp4"):
        assert part in text
    only = dataclasses.replace(summary, memory_bytes=summary.bf16_bytes * 2)
    assert "2.00x larger than bf16" in str(only)


def test_a_directory_of_an_earlier_version_loads_without_checksums(saved, model):
    as_an_earlier_version_wrote_it(saved)
    found, header = checkpoint.load(saved)
    same(found, model)
    assert header.checksums == {}
    assert checkpoint.verify(saved)[1] == 0


def test_a_pair_says_that_it_is_one(saved, tmp_path):
    from sixbit_jax.checkpoint.pair import write_description

    write_description(tmp_path, 0.9)
    with pytest.raises(CheckpointError, match=r"a pair of two .*load_pair"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="high_noise"):
        checkpoint.summarize(tmp_path)


def test_two_threads_into_one_destination_leave_one_model(tmp_path, model):
    gate = threading.Barrier(2)
    outcomes = []

    def write():
        gate.wait()
        try:
            checkpoint.save(model, tmp_path / "m")
            outcomes.append("saved")
        except CheckpointError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(o == "saved" for o in outcomes) == [False, True]
    (refusal,) = (o for o in outcomes if o != "saved")
    assert "still running" in refusal or "expected a new path" in refusal
    same(checkpoint.load(tmp_path / "m")[0], model)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_path_that_is_no_text_is_refused(saved, tmp_path):
    path = saved.rename(tmp_path / os.fsdecode(b"m\xff"))
    with pytest.raises(CheckpointError, match=r"a path in UTF-8, found .*m\\xff"):
        checkpoint.load(path)
