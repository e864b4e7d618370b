"""Zip files of torch.save: what is read, and that nothing in them runs."""

import json
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert import convert
from convert.errors import ConversionError
from convert.reader import open_source
from convert.torch_file import StridedInfo, read_index
from sixbit_jax.checkpoint import load
from tests.convert.checkpoints import golden, write_golden
from tests.convert.torch_files import (
    Call,
    Global,
    Storage,
    tensor,
    whole,
    write_state_dict,
    write_torch_file,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_file"
DTYPES = (
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
)


def _read(file):
    return {name: info.read() for name, info in read_index(file).items()}


def test_what_torch_wrote_is_read_as_torch_reads_it():
    """Files of torch 2.13: views, shared storages, parameters, every dtype."""
    expected = np.load(GOLDEN / "expected.npz")
    facts = json.loads(str(expected["facts"]))
    found = _read(GOLDEN / "weights.pt")
    assert found.keys() == facts.keys()
    for name, (dtype, shape) in facts.items():
        assert found[name].dtype == np.dtype(getattr(ml_dtypes, dtype, dtype)), name
        assert list(found[name].shape) == shape, name
        stored = found[name].reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(stored, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_survives(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(dtype)
    file = write_state_dict(tmp_path / "a.pt", {"w": values, "s": values[0, 0]})
    found = _read(file)
    assert found["w"].dtype == values.dtype
    np.testing.assert_array_equal(found["w"], values)
    assert found["s"].shape == ()


def test_views_and_shared_storages(tmp_path):
    values = np.arange(24, dtype=np.float32)
    shared = Storage(values, "0")
    content = {
        "whole": tensor(shared, 0, (4, 6), (6, 1)),
        "transposed": tensor(shared, 0, (6, 4), (1, 6)),
        "columns": tensor(shared, 1, (4, 2), (6, 2)),
        "expanded": tensor(shared, 3, (2, 3), (0, 1)),
        "last": tensor(shared, 23, (1,), (7,)),
        "empty": tensor(shared, 24, (0, 6), (6, 1)),
    }
    file = write_torch_file(tmp_path / "a.pt", content)
    index = read_index(file)
    base = values.reshape(4, 6)
    for name, expected in {
        "whole": base,
        "transposed": base.T,
        "columns": base[:, 1:5:2],
        "expanded": np.broadcast_to(values[3:6], (2, 3)),
        "last": values[-1:],
        "empty": np.zeros((0, 6), np.float32),
    }.items():
        read = index[name].read()
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected)
    # Rows that lie one after the other are read without a copy.
    assert not isinstance(index["whole"], StridedInfo)
    assert isinstance(index["transposed"], StridedInfo)


def test_a_state_dict_inside_of_a_training_checkpoint(tmp_path):
    weights = {"a": whole(np.ones(3, np.float32), "0")}
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), weights["a"], True)
    for name, content in (
        ("top", {"a": parameter, "steps": 7}),
        ("state_dict", {"state_dict": weights, "epoch": 3}),
        ("module", {"module": weights, "optimizer": None}),
    ):
        found = _read(write_torch_file(tmp_path / f"{name}.pt", content))
        assert list(found) == ["a"]
        np.testing.assert_array_equal(found["a"], 1)
    file = write_torch_file(tmp_path / "none.pt", {"lr": 0.1})
    with pytest.raises(ConversionError, match=r"found no tensor among 'lr'"):
        read_index(file)
    file = write_torch_file(tmp_path / "list.pt", [1])
    with pytest.raises(ConversionError, match="expected a dict of tensors, found a li"):
        read_index(file)


MALICIOUS = {
    "os.system": Call(Global("os", "system"), "touch RAN"),
    "builtins.eval": Call(Global("builtins", "eval"), "open('RAN','w')"),
    "builtins.getattr": Call(Global("builtins", "getattr"), "", "join"),
    "subprocess.Popen": Call(Global("subprocess", "Popen"), ["touch", "RAN"]),
    "torch.load": Call(Global("torch", "load"), "RAN"),
    "numpy._core.multiarray._reconstruct": Call(
        Global("numpy._core.multiarray", "_reconstruct"), ()
    ),
    "torch._tensor._rebuild_from_type_v2": Call(
        Global("torch._tensor", "_rebuild_from_type_v2"), ()
    ),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_runs_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    weights = {"a": whole(np.ones(3, np.float32), "0"), "b": MALICIOUS[name]}
    file = write_torch_file(tmp_path / "evil.pt", weights)
    with pytest.raises(ConversionError, match=f"found {name} in its pickle"):
        read_index(file)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


def _with_pickle(file, content):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(12))
    return file


def test_a_pickle_cannot_change_what_it_calls(tmp_path):
    """BUILD with slot state sets attributes, of any object that lets it."""
    state = b"N}X\x05\x00\x00\x00_code(X\x01\x00\x00\x00xX\x01\x00\x00\x00yu\x86b."
    for name in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"):
        file = _with_pickle(tmp_path / "a.pt", b"\x80\x02" + name + state)
        with pytest.raises(ConversionError, match="found"):
            read_index(file)
        file.unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}",
        b"\x80\x02]q\xff\x85R.",
        b"hello",
        # A memo entry of number 2^31: no memory for all those before it.
        b"\x80\x02}r\xff\xff\xff\x7f.",
        pickle.dumps({"a": 1})[:-3],
    ],
)
def test_a_damaged_pickle_is_an_error_and_no_more(tmp_path, content):
    with pytest.raises(ConversionError, match="expected"):
        read_index(_with_pickle(tmp_path / "a.pt", content))


def test_tensors_that_leave_their_storage_are_refused(tmp_path):
    storage = Storage(np.zeros(6, np.float32), "0")
    for number, view in enumerate(
        [(0, (7,), (1,)), (4, (3,), (1,)), (0, (2, 3), (4, 1)), (-1, (2,), (1,))]
    ):
        file = write_torch_file(
            tmp_path / f"{number}.pt", {"a": tensor(storage, *view)}
        )
        with pytest.raises(ConversionError, match="a tensor"):
            read_index(file)


def test_archives_that_are_not_as_torch_writes_them(tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(b"PK")
    with pytest.raises(ConversionError, match="truncated, or another format"):
        read_index(file)
    file.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"...")
    with pytest.raises(ConversionError, match=r"before torch 1\.6"):
        read_index(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(ConversionError, match=r"one data.pkl in the archive, found 0"):
        read_index(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
    with pytest.raises(ConversionError, match="compressed or encrypted"):
        read_index(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/byteorder", "big")
    with pytest.raises(ConversionError, match="little-endian"):
        read_index(file)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth"])
def test_conversion_is_that_of_the_same_weights_as_safetensors(tmp_path, suffix):
    case = golden()
    directory = write_golden(tmp_path / "a", case)
    convert(directory, tmp_path / "from_safetensors")
    plain = tmp_path / "b"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(dict(case.config)))
    write_state_dict(plain / f"diffusion_pytorch_model.{suffix}", case.weights())
    convert(plain, tmp_path / "from_torch")
    for expected, found in zip(
        *(
            load(tmp_path / name)[1].items()
            for name in ("from_safetensors", "from_torch")
        ),
        strict=True,
    ):
        assert expected == found
    read = open_source(plain).tensors
    for name, array in case.weights().items():
        np.testing.assert_array_equal(read[name].read(), array)


def test_shards_with_an_index(tmp_path):
    weights = {f"w{i}": np.full(3, i, np.float32) for i in range(4)}
    (tmp_path / "config.json").write_text("{}")
    weight_map = {}
    for number, part in enumerate((["w0", "w1"], ["w2", "w3"]), 1):
        name = f"diffusion_pytorch_model-{number:05}-of-00002.bin"
        write_state_dict(tmp_path / name, {key: weights[key] for key in part})
        weight_map |= dict.fromkeys(part, name)
    index = tmp_path / "diffusion_pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    source = open_source(tmp_path)
    assert len(source.files) == 2
    for name, array in weights.items():
        np.testing.assert_array_equal(source.tensors[name].read(), array)
