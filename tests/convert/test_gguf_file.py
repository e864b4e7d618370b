"""GGUF files, written by the gguf package itself."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from convert import ConversionError, convert
from convert.gguf_file import read_index
from convert.reader import open_source
from sixbit_jax.models.wan.config import WanConfig
from tests.convert.checkpoints import golden
from tests.convert.lora_files import original
from tests.convert.test_lora import check
from tests.golden import wan_cases

CASE = "t2v_128_f2_8x6_t7_rows"
QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
# Where the half-precision scales of a block lie; the other bytes may be any.
K_QUANTS = {
    "Q2_K": (84, slice(80, 84)),
    "Q3_K": (110, slice(108, 110)),
    "Q4_K": (144, slice(0, 4)),
    "Q5_K": (176, slice(0, 4)),
    "Q6_K": (210, slice(208, 210)),
}


def write(file, tensors, *, arch="wan", kinds=None, shapes=None, notes=None):
    """A file by the package's writer, and the values that its reader finds."""
    writer = gguf.GGUFWriter(file, arch)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("some.numbers", [1.5, 2.5])
    for name, value in (notes or {}).items():
        writer.add_uint16(name, value)
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(n) for n in shape])
    for name, array in tensors.items():
        kind = (kinds or {}).get(name, Kind.F32)
        data = quants.quantize(array, kind) if array.dtype == np.float32 else array
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {
        t.name: quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in gguf.GGUFReader(file).tensors
    }


@pytest.fixture(scope="module")
def case():
    return wan_cases.load(CASE)


def wan(case, prefix=""):
    return {prefix + original(key): value for key, value in case.weights().items()}


def linear(name, array, values=32):
    return name.endswith(".weight") and array.ndim == 2 and not array.shape[1] % values


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *QUANTIZED])
def test_a_wan_in_each_type_is_the_network_that_it_stands_for(
    tmp_path, case, kind, prefix
):
    tensors = wan(case, prefix)
    kinds = {n: Kind[kind] for n, a in tensors.items() if linear(n, a)}
    values = write(tmp_path / "wan.gguf", tensors, kinds=kinds)
    source = open_source(tmp_path / "wan.gguf")
    config = WanConfig.from_dict(dict(case.config) | {"rope_max_seq_len": 1024})
    assert WanConfig.from_dict(source.config) == config
    report = convert(tmp_path / "wan.gguf", tmp_path / "out")
    found = {key: values[prefix + original(key)] for key in case.weights()}
    found = {k: v.reshape(case.weights()[k].shape) for k, v in found.items()}
    check(tmp_path / "out", found, {})
    wanted = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    name = wanted.get(kind, f"GGUF {kind}")
    assert report.source_dtypes[name] >= len(kinds) > 20


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_are_the_values_of_the_package(tmp_path, kind):
    nbytes, scales = K_QUANTS[kind]
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (10_000, nbytes), dtype=np.uint8)
    halves = draw.normal(0, 0.01, (10_000, scales.stop - scales.start >> 1))
    blocks[:, scales] = halves.astype(np.float16).view(np.uint8)
    data = blocks.reshape(100, -1)
    values = write(tmp_path / "a.gguf", {"x": data}, kinds={"x": Kind[kind]})
    info = read_index(tmp_path / "a.gguf")["x"]
    assert info.shape == (100, 25_600)
    assert np.abs(values["x"]).max() > 0.01
    np.testing.assert_array_equal(info.read(), values["x"])


@pytest.mark.parametrize("how", ["five axes", "noted", "four axes"])
def test_the_patch_convolution_has_its_own_shape(tmp_path, case, how):
    tensors, shapes = wan(case), {}
    name = "patch_embedding.weight"
    shape = tensors[name].shape
    if how == "noted":
        shapes = {name: shape}
        tensors[name] = tensors[name].reshape(-1, 64)
    elif how == "four axes":
        tensors[name] = tensors[name].reshape(-1, *shape[2:])
    write(tmp_path / "wan.gguf", tensors, shapes=shapes)
    convert(tmp_path / "wan.gguf", tmp_path / "out")
    check(tmp_path / "out", case.weights(), {})


def test_cogvideox_takes_its_configuration_from_the_file_beside(tmp_path):
    import json

    case = golden()
    tensors = case.weights()
    kinds = {n: Kind.Q8_0 for n, a in tensors.items() if linear(n, a)}
    values = write(tmp_path / "m.gguf", tensors, arch="cogvideox", kinds=kinds)
    with pytest.raises(ConversionError, match=r"expected config\.json next to"):
        open_source(tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text(json.dumps(dict(case.config)))
    convert(tmp_path, tmp_path / "out", weights="nvfp4")
    convert(tmp_path, tmp_path / "plain")
    found = {k: v.reshape(tensors[k].shape) for k, v in values.items()}
    check(tmp_path / "plain", found, {})


def test_a_block_is_read_at_a_time(tmp_path, monkeypatch):
    """Only the tensors of one item are expanded at once."""
    reads = []
    tensor = np.ones((64, 4096), np.float32)
    write(tmp_path / "a.gguf", {"x": tensor, "y": tensor}, kinds={"x": Kind.Q8_0})
    index = read_index(tmp_path / "a.gguf")
    monkeypatch.setattr(quants, "dequantize", lambda *a: reads.append(a[0].size))
    assert index["y"].read().shape == (64, 4096)
    assert not reads
    with pytest.raises(AttributeError):
        index["x"].read()
    assert reads == [4096 * 34]


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "a.gguf"
    write(file, {"x": np.ones((4, 32), np.float32), "y": np.ones(8, np.float32)})
    return file


def refusal(file):
    with pytest.raises(ConversionError) as caught:
        read_index(file)
    return str(caught.value)


@pytest.mark.parametrize("arch", ["llama", "flux", "sd3", "t5"])
def test_other_networks_are_named(tmp_path, arch):
    write(tmp_path / "a.gguf", {"x": np.ones(8, np.float32)}, arch=arch)
    message = refusal(tmp_path / "a.gguf")
    assert f"expected wan, cogvideox, hyvid, found '{arch}': a sound file" in message


def test_types_that_are_not_read_are_named(tmp_path):
    tensors = {"x": np.ones((2, 256), np.float32), "y": np.zeros((2, 66), np.uint8)}
    kinds = {"x": Kind.TQ1_0, "y": Kind.IQ2_XXS}
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
    writer.add_tensor(
        "x", quants.quantize(tensors["x"], kinds["x"]), raw_dtype=kinds["x"]
    )
    writer.add_tensor("y", tensors["y"], raw_dtype=kinds["y"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refusal(tmp_path / "a.gguf")
    assert "found IQ2_XXS (y), TQ1_0 (x), which are not read" in message
    assert "not damaged" in message


def test_a_part_of_several_is_named(tmp_path):
    write(tmp_path / "a.gguf", {"x": np.ones(8, np.float32)}, notes={"split.count": 3})
    assert "one of 3 parts" in refusal(tmp_path / "a.gguf")


def test_truncated_and_changed_files_are_refused(tmp_path, small):
    data = small.read_bytes()
    assert "expected 32 bytes" in _with(small, data[:-40])
    for end in range(0, 300, 7):
        assert "expected" in _with(small, data[:end])
    assert "one of b'GGML'" in _with(small, b"GGML" + data[4:])
    assert "found a version 1" in _with(small, data[:4] + b"\1\0\0\0" + data[8:])
    assert "big-endian" in _with(small, data[:4] + b"\0\0\0\3" + data[8:])
    many = data[:8] + (2**60).to_bytes(8, "little") + data[16:]
    assert "damaged" in _with(small, many)


def _with(file, data):
    file.write_bytes(data)
    return refusal(file)


def test_tensors_over_one_another_are_refused(tmp_path, small):
    data = small.read_bytes()
    place = data.index(b"\1\0\0\0\0\0\0\0y") + 9
    # One axis, its size, its type, and then where it lies.
    offset = place + 4 + 8 + 4
    assert int.from_bytes(data[offset : offset + 8], "little") == 512
    changed = data[:offset] + bytes(8) + data[offset + 8 :]
    assert "x: expected its own bytes, found those of y" in _with(small, changed)


def test_a_noted_shape_of_other_size_is_refused(tmp_path):
    file = tmp_path / "a.gguf"
    write(file, {"x": np.ones((4, 32), np.float32)}, shapes={"x": (4, 33)})
    assert "expected the sizes of 128 values" in refusal(file)


def test_without_the_package_the_message_says_which(tmp_path, monkeypatch):
    file = tmp_path / "a.gguf"
    tensors = {"x": np.ones((4, 32), np.float32)}
    write(file, tensors, kinds={"x": Kind.Q8_0})
    info = read_index(file)["x"]
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ConversionError, match=r"sixbit-jax\[gguf\]"):
        info.read()
