import dataclasses
import json
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
from sixbit_jax.formats import NVFP4Array, UniformArray
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer

CONFIG = CogVideoXConfig(
    num_attention_heads=2,
    attention_head_dim=32,
    in_channels=2,
    out_channels=2,
    time_embed_dim=32,
    text_embed_dim=32,
    num_layers=3,
    sample_width=4,
    sample_height=4,
    sample_frames=1,
    max_text_seq_length=4,
    use_rotary_positional_embeddings=True,
)


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


def _state(model):
    flat = jax.tree_util.tree_flatten_with_path(nnx.state(model))[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def _same(found, expected):
    found, expected = _state(found), _state(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _edit(directory, change, *, sealed=True):
    """Changes the header, with a checksum that fits it unless `sealed` is false."""
    file = directory / "sixbit.json"
    values = json.loads(file.read_text())
    change(values)
    if sealed:
        values["checksum"] = header_module.seal(values)
    file.write_text(json.dumps(values))


def _as_an_earlier_version_wrote_it(directory):
    def without(values):
        del values["checksums"], values["checksum"]

    _edit(directory, without, sealed=False)


def test_a_model_survives_a_round_trip(saved, model):
    loaded, header = checkpoint.load(saved)
    _same(loaded, model)
    assert loaded.config == CONFIG
    assert header.scheduler == {"_class_name": "S"}
    assert header.num_parameters == sum(x.size for x in _state(model).values())


def test_nvfp4_weights_survive_and_run(tmp_path, quantized):
    header = checkpoint.save(quantized, tmp_path / "q", quantization={"weights": "x"})
    loaded, read = checkpoint.load(tmp_path / "q")
    _same(loaded, quantized)
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
    whole = model_module._allocate(stack, None)
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
    _same(loaded, model)


def test_the_header_survives_json(saved):
    header = checkpoint.read_header(saved)
    (saved / "sixbit.json").write_text(header.to_json())
    assert checkpoint.read_header(saved) == header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=2), "expected format_version 1, found 2"),
        (lambda v: v.pop("format_version"), "expected format_version 1, found None"),
        (lambda v: v.pop("stacks"), "expected the fields of format 1, found KeyErr"),
        (lambda v: v.update(parameters=3), "expected the fields of format 1"),
    ],
)
def test_a_bad_header_is_refused(saved, change, message):
    _edit(saved, change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


def test_a_directory_without_a_readable_header_is_refused(tmp_path, saved):
    with pytest.raises(CheckpointError, match=r"with sixbit.json .*, found none"):
        checkpoint.load(tmp_path)
    (saved / "sixbit.json").write_text("{")
    with pytest.raises(CheckpointError, match="expected a JSON object, found no JSON"):
        checkpoint.load(saved)


def test_all_missing_and_truncated_items_are_listed(saved):
    for name in ("transformer_blocks.1", "rest"):
        (saved / name).rename(saved / f"gone-{name}")
    file = max(
        (saved / "transformer_blocks.2").rglob("*"), key=lambda f: f.stat().st_size
    )
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="missing or damaged items") as error:
        checkpoint.load(saved)
    for name in ("transformer_blocks.1", "transformer_blocks.2", "rest"):
        assert f"{name}: expected " in str(error.value)
    assert "transformer_blocks.0" not in str(error.value)


def test_an_item_that_orbax_cannot_read_is_named(saved):
    file = saved / "transformer_blocks.1" / "_METADATA"
    file.write_bytes(b"?" * file.stat().st_size)
    with pytest.raises(CheckpointError, match=r"reading transformer_blocks\.1"):
        checkpoint.load(saved, verify=False)
    with pytest.raises(CheckpointError, match=r"damaged item: transformer_blocks\.1: "):
        checkpoint.load(saved)


def test_an_item_that_is_not_what_the_header_says_is_refused(saved):
    def change(values):
        stack = values["stacks"]["transformer_blocks"]["parameters"]
        stack["ff.up.bias"]["dtype"] = "bfloat16"

    _edit(saved, change)
    with pytest.raises(CheckpointError, match="expected value bfloat16") as error:
        checkpoint.load(saved)
    assert "transformer_blocks.0.ff.up.bias" in str(error.value)


def test_a_header_that_does_not_fit_its_config_lists_all_differences(saved):
    def change(values):
        values["config"]["use_learned_positional_embeddings"] = True
        values["config"]["attention_bias"] = False
        values["config"]["out_channels"] = 4

    _edit(saved, change)
    with pytest.raises(CheckpointError, match="not the parameters") as error:
        checkpoint.load(saved)
    for part in (
        "missing: patch_embed.pos_embedding",
        "unexpected: transformer_blocks.attn1.to_q.bias [3, 64]",
        "proj_out.weight: expected [16, 64], found [8, 64]",
    ):
        assert part in str(error.value)


def test_an_unknown_model_class_is_refused(saved):
    _edit(saved, lambda values: values.update(model_class="UNet"))
    with pytest.raises(ValueError, match="'UNet'"):
        checkpoint.load(saved)


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
    _same(found, copy)
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
    assert summary.memory_bytes == sum(x.nbytes for x in _state(quantized).values())
    assert summary.disk_bytes >= summary.memory_bytes
    assert summary.num_parameters == header.num_parameters
    assert summary.memory_ratio == 2 * summary.num_parameters / summary.memory_bytes
    text = str(summary)
    for part in ("CogVideoXTransformer3DModel", "attn_in", "blocks       3", "nvfp4"):
        assert part in text
    only = dataclasses.replace(summary, memory_bytes=summary.bf16_bytes * 2)
    assert "2.00x larger than bf16" in str(only)


def _flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path, quantized):
    """80 bits drawn from all files, large ones more often, and 40 of the header."""
    checkpoint.save(quantized, tmp_path / "m", scheduler={"_class_name": "S"})
    files = [f for f in sorted((tmp_path / "m").rglob("*")) if f.stat().st_size]
    files = [f for f in files if f.is_file()]
    sizes = np.array([f.stat().st_size for f in files])
    rng = np.random.default_rng(0)
    drawn = list(rng.choice(len(files), 80, p=sizes / sizes.sum()))
    drawn += [files.index(tmp_path / "m" / "sixbit.json")] * 40
    refused = 0
    for number in drawn:
        file = files[number]
        before = file.read_bytes()
        _flip(file, int(rng.integers(8 * sizes[number])))
        try:
            found, header = checkpoint.load(tmp_path / "m")
        except CheckpointError:
            refused += 1
        else:  # white space of the header
            assert file.name == "sixbit.json"
            assert header == checkpoint.read_header(tmp_path / "m")
            _same(found, quantized)
        file.write_bytes(before)
    assert refused > 100
    _same(checkpoint.load(tmp_path / "m")[0], quantized)


def test_a_flipped_bit_loads_only_if_nobody_looks(saved, model):
    file = max(saved.rglob("*"), key=lambda f: f.stat().st_size)
    _flip(file, 8 * file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="expected files with the checksum"):
        checkpoint.load(saved)
    found, _ = checkpoint.load(saved, verify=False)
    expected = _state(model)
    assert any(
        not np.array_equal(value, expected[name])
        for name, value in _state(found).items()
    )


def test_verifying_lists_all_damaged_items(saved):
    header, size = checkpoint.verify(saved)
    assert size == sum(header.item_bytes.values())
    for name in ("transformer_blocks.0", "rest"):
        files = (f for f in (saved / name).rglob("*") if f.is_file())
        _flip(max(files, key=lambda f: f.stat().st_size), 12345)
    with pytest.raises(CheckpointError, match="damaged items") as error:
        checkpoint.verify(saved)
    message = str(error.value)
    assert "transformer_blocks.0: " in message
    assert "rest: " in message
    assert "transformer_blocks.1: " not in message


def test_a_header_changed_by_hand_is_refused(saved):
    _edit(saved, lambda v: v["config"].update(norm_eps=0.5), sealed=False)
    with pytest.raises(CheckpointError, match="damaged or changed by hand"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["checksum", "checksums"])
def test_a_header_whose_checksum_lost_its_name_is_not_taken_for_an_old_one(saved, name):
    def rename(values):
        values[name.replace("s", "r")] = values.pop(name)

    _edit(saved, rename, sealed=False)
    with pytest.raises(CheckpointError, match=r"besides|damaged"):
        checkpoint.load(saved)


def test_a_directory_of_an_earlier_version_loads_without_checksums(saved, model):
    _as_an_earlier_version_wrote_it(saved)
    found, header = checkpoint.load(saved)
    _same(found, model)
    assert header.checksums == {}
    assert checkpoint.verify(saved)[1] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stack: stack.update(length=10**9), "length: expected 1 to"),
        (lambda stack: stack.update(length=True), "expected a whole number"),
        (lambda stack: stack.update(length="3"), "expected a whole number"),
        (
            lambda stack: stack["parameters"]["ff.up.bias"].update(shape=[-1]),
            "expected a whole number",
        ),
        (
            lambda stack: stack["parameters"]["ff.up.bias"].update(dtype=["x"]),
            "expected a name",
        ),
    ],
)
def test_a_header_of_other_types_is_refused(saved, change, message):
    _edit(saved, lambda values: change(values["stacks"]["transformer_blocks"]))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


def test_a_deep_or_a_huge_header_is_refused(saved):
    header = saved / "sixbit.json"
    whole = header.read_bytes()
    header.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested deeper than 64 levels"):
        checkpoint.load(saved)
    os.truncate(header, 2**40)
    with pytest.raises(CheckpointError, match="expected JSON of at most 16,777,216"):
        checkpoint.load(saved)
    header.write_bytes(whole + b"\xff" * 1000)
    with pytest.raises(CheckpointError, match="bytes that are not UTF-8") as caught:
        checkpoint.load(saved)
    assert len(str(caught.value)) < 500


def test_a_header_that_is_no_file_is_refused_at_once(saved):
    (saved / "sixbit.json").unlink()
    os.mkfifo(saved / "sixbit.json")
    for read in (checkpoint.load, checkpoint.summarize):
        with pytest.raises(CheckpointError, match="regular file, found a FIFO"):
            read(saved)


def test_the_summary_notices_missing_items(saved):
    (saved / "rest").rename(saved / "gone")
    with pytest.raises(CheckpointError, match="rest: expected"):
        checkpoint.summarize(saved)


def test_what_does_not_belong_to_a_checkpoint_is_named(saved):
    assert checkpoint.foreign(saved) == []
    (saved / "notes.txt").write_text("mine")
    (saved / "rest" / "more").write_text("mine")
    file = saved / "transformer_blocks.0" / "_METADATA"
    _flip(file, 9)
    assert checkpoint.foreign(saved) == [
        "notes.txt",
        "rest (changed)",
        "transformer_blocks.0 (changed)",
    ]


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
    _same(checkpoint.load(tmp_path / "m")[0], model)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_path_that_is_no_text_is_refused(saved, tmp_path):
    path = saved.rename(tmp_path / os.fsdecode(b"m\xff"))
    with pytest.raises(CheckpointError, match=r"a path in UTF-8, found .*m\\xff"):
        checkpoint.load(path)
