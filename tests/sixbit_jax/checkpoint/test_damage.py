"""Damaged and altered directories are refused by name."""

import os

import numpy as np
import pytest

from sixbit_jax import checkpoint
from sixbit_jax.checkpoint import CheckpointError
from tests.sixbit_jax.checkpoint.directories import (
    edit,
    same,
    state_of,
)


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
    edit(saved, change)
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

    edit(saved, change)
    with pytest.raises(CheckpointError, match="expected value bfloat16") as error:
        checkpoint.load(saved)
    assert "transformer_blocks.0.ff.up.bias" in str(error.value)


def test_a_header_that_does_not_fit_its_config_lists_all_differences(saved):
    def change(values):
        values["config"]["use_learned_positional_embeddings"] = True
        values["config"]["attention_bias"] = False
        values["config"]["out_channels"] = 4

    edit(saved, change)
    with pytest.raises(CheckpointError, match="not the parameters") as error:
        checkpoint.load(saved)
    for part in (
        "missing: patch_embed.pos_embedding",
        "unexpected: transformer_blocks.attn1.to_q.bias [3, 64]",
        "proj_out.weight: expected [16, 64], found [8, 64]",
    ):
        assert part in str(error.value)


def test_an_unknown_model_class_is_refused(saved):
    edit(saved, lambda values: values.update(model_class="UNet"))
    with pytest.raises(ValueError, match="'UNet'"):
        checkpoint.load(saved)


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
            same(found, quantized)
        file.write_bytes(before)
    assert refused > 100
    same(checkpoint.load(tmp_path / "m")[0], quantized)


def test_a_flipped_bit_loads_only_if_nobody_looks(saved, model):
    file = max(saved.rglob("*"), key=lambda f: f.stat().st_size)
    _flip(file, 8 * file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="expected files with the checksum"):
        checkpoint.load(saved)
    found, _ = checkpoint.load(saved, verify=False)
    expected = state_of(model)
    assert any(
        not np.array_equal(value, expected[name])
        for name, value in state_of(found).items()
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
    edit(saved, lambda v: v["config"].update(norm_eps=0.5), sealed=False)
    with pytest.raises(CheckpointError, match="damaged or changed by hand"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["checksum", "checksums"])
def test_a_header_whose_checksum_lost_its_name_is_not_taken_for_an_old_one(saved, name):
    def rename(values):
        values[name.replace("s", "r")] = values.pop(name)

    edit(saved, rename, sealed=False)
    with pytest.raises(CheckpointError, match=r"besides|damaged"):
        checkpoint.load(saved)


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
    edit(saved, lambda values: change(values["stacks"]["transformer_blocks"]))
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
