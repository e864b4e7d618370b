import json
import os

import numpy as np
import pytest

from convert.errors import ConversionError
from convert.reader import open_source
from convert.safetensors_file import write_file
from sixbit_jax.reading.messages import brief
from tests.convert.checkpoints import NAME, SCHEDULER, write_checkpoint
from tests.convert.torch_files import write_state_dict

CONFIG = {"_class_name": "CogVideoXTransformer3DModel"}
WEIGHTS = {f"w{i}": np.full((2, 3), i, np.float32) for i in range(5)}


def _read_all(source):
    return {name: info.read() for name, info in source.tensors.items()}


def _same(source):
    read = _read_all(source)
    assert read.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("shards", [0, 2])
def test_root_directory_and_transformer_directory_are_the_same(tmp_path, shards):
    write_checkpoint(tmp_path / "root" / "transformer", CONFIG, WEIGHTS, shards=shards)
    (tmp_path / "root" / "model_index.json").write_text("{}")
    (tmp_path / "root" / "scheduler").mkdir()
    text = json.dumps(SCHEDULER)
    (tmp_path / "root" / "scheduler" / "scheduler_config.json").write_text(text)
    for path in ("root", "root/transformer"):
        source = open_source(tmp_path / path)
        _same(source)
        assert source.config == CONFIG
        assert source.scheduler == SCHEDULER
        assert len(source.files) == max(shards, 1)
        assert source.nbytes > 5 * 24


def test_a_single_file_may_be_named(tmp_path):
    write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    source = open_source(tmp_path / "m" / f"{NAME}.safetensors")
    _same(source)
    assert source.scheduler is None


def test_the_default_variant_wins_over_fp16(tmp_path):
    write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    write_file(tmp_path / "m" / f"{NAME}.fp16.safetensors", {"x": np.zeros(1, "f2")})
    _same(open_source(tmp_path / "m"))


def test_two_checkpoints_without_a_default_are_ambiguous(tmp_path):
    write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    (tmp_path / "m" / f"{NAME}.safetensors").rename(tmp_path / "m" / "a.safetensors")
    write_file(tmp_path / "m" / "b.safetensors", WEIGHTS)
    with pytest.raises(ConversionError, match=r"one checkpoint.*a.safetensors, b.saf"):
        open_source(tmp_path / "m")


def _edit_index(directory, change):
    file = directory / f"{NAME}.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def test_an_index_that_names_missing_files_lists_them(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=3)
    for number in (1, 3):
        (directory / f"{NAME}-0000{number}-of-00003.safetensors").unlink()
    with pytest.raises(ConversionError, match="no such file") as error:
        open_source(directory)
    assert "00001-of-00003.safetensors (2 tensors)" in str(error.value)
    assert "00003-of-00003.safetensors (1 tensors)" in str(error.value)


def test_an_index_and_its_shards_must_agree(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)

    def change(weight_map):
        weight_map["ghost"] = weight_map["w0"]
        del weight_map["w4"]

    _edit_index(directory, change)
    with pytest.raises(ConversionError) as error:
        open_source(directory)
    assert "the index places ghost here; not found" in str(error.value)
    assert "holds w4, which the index does not" in str(error.value)


@pytest.mark.parametrize("name", ["../other.safetensors", 3])
def test_an_index_may_not_leave_its_directory(tmp_path, name):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    _edit_index(directory, lambda weight_map: weight_map.update(w0=name))
    with pytest.raises(ConversionError, match="w0: expected a file name"):
        open_source(directory)


def test_an_index_without_a_weight_map_is_refused(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    (directory / f"{NAME}.safetensors.index.json").write_text("{}")
    with pytest.raises(ConversionError, match="expected a weight_map, found None"):
        open_source(directory)


def test_shards_without_an_index_are_refused(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    (directory / f"{NAME}.safetensors.index.json").unlink()
    with pytest.raises(ConversionError, match=r"expected \*.safetensors.index.json"):
        open_source(directory)


def test_every_truncated_shard_is_named(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    for file in directory.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ConversionError, match="files that cannot be read") as error:
        open_source(directory)
    assert str(error.value).count("the file is truncated") == 2


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("model.diffusion_model.mixins.pos_embed.freqs_cos", "CogVideoX"),
        ("transformer.layers.0.attention.dense.weight", "CogVideoX"),
        ("blocks.0.self_attn.q.weight", "Wan"),
        ("double_blocks.0.img_attn_qkv.weight", "HunyuanVideo"),
    ],
)
def test_original_key_names_are_recognised(tmp_path, key, layout):
    (tmp_path / "m").mkdir()
    write_file(tmp_path / "m" / "model.safetensors", {key: np.zeros(2, np.float32)})
    with pytest.raises(ConversionError, match=f"original layout of {layout}"):
        open_source(tmp_path / "m")


def test_an_original_pth_file_is_recognised(tmp_path):
    file = tmp_path / "1" / "mp_rank_00_model_states.pt"
    file.parent.mkdir()
    key = "transformer.layers.0.attention.dense.weight"
    write_state_dict(file, {key: np.zeros(2, np.float32)})
    for path in (file, file.parent):
        with pytest.raises(ConversionError, match="original layout of CogVideoX"):
            open_source(path)


def test_files_of_another_kind_are_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"ONNX")
    with pytest.raises(ConversionError, match=r"expected one of \.safetensors, .*onnx"):
        open_source(tmp_path / "model.onnx")
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(ConversionError, match="truncated, or another format"):
        open_source(tmp_path)


def test_safetensors_win_over_pickles(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    (directory / f"{NAME}.bin").write_bytes(b"PK")
    _same(open_source(directory))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object, found no JSON"),
        ("[1]", "expected a JSON object, found a list"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, text, message):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    (directory / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=message):
        open_source(directory)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ConversionError, match="found nothing at"):
        open_source(tmp_path / "absent")
    with pytest.raises(ConversionError, match="found neither safetensors nor an index"):
        open_source(tmp_path)
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    (directory / "config.json").unlink()
    with pytest.raises(ConversionError, match=r"expected config.json next to"):
        open_source(directory)


def _fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def _dangling(path):
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


OTHERS = {"FIFO": _fifo, "device": _device, "a directory": _directory}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        f"{NAME}.safetensors.index.json",
        f"{NAME}-00001-of-00002.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, name):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    (directory / "scheduler").mkdir()
    OTHERS[kind](directory / name)
    with pytest.raises(ConversionError, match=f"expected a regular file.*{kind}"):
        open_source(directory)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_weights_that_are_no_regular_file_are_refused_at_once(tmp_path, kind, suffix):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / f"model.{suffix}"
    OTHERS[kind](weights)
    for path in (tmp_path, weights) if kind != "a directory" else (tmp_path,):
        with pytest.raises(ConversionError, match=f"expected a regular file.*{kind}"):
            open_source(path)


def test_links_to_files_are_files_and_dangling_ones_are_said(tmp_path):
    directory = write_checkpoint(tmp_path / "blobs", CONFIG, WEIGHTS)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in directory.iterdir():
        (linked / file.name).symlink_to(file)
    _same(open_source(linked))
    for name in ("config.json", f"{NAME}.safetensors"):
        _dangling(linked / name)
        with pytest.raises(ConversionError, match="No such file"):
            open_source(linked)
        (linked / name).unlink()
        (linked / name).symlink_to(directory / name)


def test_sparse_json_files_are_refused_by_their_size(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    for name in ("config.json", f"{NAME}.safetensors.index.json"):
        whole = (directory / name).read_bytes()
        os.truncate(directory / name, 2**40)
        with pytest.raises(ConversionError, match=r"expected JSON of at most .*found"):
            open_source(directory)
        (directory / name).write_bytes(whole)
    _same(open_source(directory))


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' * 100_000,
        b'{"_class_name": NaN}',
        b'{"x": Infinity}',
        b'{"x": 1e400}',
        '{"_class_name": "x"}'.encode("utf-16"),
        b'{"x": 1, "x": 1}',
    ],
    ids=lambda value: brief(value, 30),
)
def test_json_of_the_wrong_kind_is_a_clean_message(tmp_path, data):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS)
    (directory / "config.json").write_bytes(data)
    with pytest.raises(ConversionError, match=r"config.json: expected a JSON") as error:
        open_source(directory)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a\0b", "x" * 5000, "config.json", []],
    ids=lambda value: brief(value, 30),
)
def test_an_index_names_files_of_its_own_kind(tmp_path, name):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    _edit_index(directory, lambda weight_map: weight_map.update(w0=name))
    with pytest.raises(ConversionError, match="w0: expected a file name") as error:
        open_source(directory)
    assert len(str(error.value)) < 500


def test_a_name_twice_in_an_index_is_refused(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)
    file = directory / f"{NAME}.safetensors.index.json"
    text = file.read_text().replace('"w1"', '"w0"')
    file.write_text(text)
    with pytest.raises(ConversionError, match="the name 'w0' twice"):
        open_source(directory)


def test_lists_of_problems_are_cut(tmp_path):
    directory = write_checkpoint(tmp_path / "m", CONFIG, WEIGHTS, shards=2)

    def change(weight_map):
        weight_map.update({f"{'k' * 1000}{n}": "../x" for n in range(152)})

    _edit_index(directory, change)
    with pytest.raises(ConversionError, match=r"\.\.\. and 132 more") as error:
        open_source(directory)
    assert len(str(error.value)) < 10_000
