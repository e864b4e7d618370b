"""Packed NVFP4 of other producers: read as written, and refused when read wrongly."""

import json
from itertools import permutations
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from convert import convert, to_diffusers
from convert.errors import ConversionError
from convert.nvfp4_dialects import DIALECTS, padded, untile
from convert.reader import open_source
from convert.safetensors_file import read_index, write_file
from sixbit_jax.checkpoint import CheckpointReader, load
from sixbit_jax.formats import NVFP4Array
from tests.convert.checkpoints import NAME, write_checkpoint
from tests.convert.packed_files import decode, pack_checkpoint, quantize, tile

BUNDLED = Path(sixbit_jax.__file__).parent / "demo" / "checkpoint" / "transformer"
LAYERS = 2


@pytest.fixture(scope="module")
def trained():
    """Configuration and weights of two layers of the bundled, trained network."""
    source = open_source(BUNDLED)
    config = dict(source.config) | {"num_layers": LAYERS}
    kept = [f"transformer_blocks.{i}." for i in range(LAYERS, 8)]
    return config, {
        key: info.read()
        for key, info in source.tensors.items()
        if not key.startswith(tuple(kept))
    }


@pytest.fixture(scope="module")
def packed(trained):
    return {dialect: pack_checkpoint(trained[1], dialect) for dialect in DIALECTS}


def _write(directory, config, weights, notes=None):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_file(directory / f"{NAME}.safetensors", weights, notes)
    return directory


def test_tiles_follow_the_published_formula():
    rows, columns = 256, 8
    scales = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    tiled = scales.reshape(rows // 128, 4, 32, columns // 4, 4)
    tiled = tiled.transpose(0, 3, 2, 1, 4).reshape(rows // 128, columns // 4, 32, 16)
    np.testing.assert_array_equal(untile(tiled, rows, columns), scales)
    raw = (scales % 251).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(tile(raw).reshape(-1), (tiled % 251).reshape(-1))
    odd = raw[:130, :6]
    assert tile(odd).shape == padded(130, 6) == (256, 8)
    np.testing.assert_array_equal(untile(tile(odd), 130, 6), odd.view(np.uint8))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_read_as_it_was_written(tmp_path, trained, packed, dialect):
    tensors, decoded = packed[dialect]
    directory = _write(tmp_path / "m", trained[0], tensors)
    source = open_source(directory, dialect=dialect)
    assert source.tensors.keys() == trained[1].keys()
    for key, expected in decoded.items():
        np.testing.assert_array_equal(source.tensors[key].read(), expected)
    facts = source.packed.facts
    assert facts is not None
    # The bundled weights tell all three; two layers of them are enough.
    assert facts["confirmed"] == ["nibbles", "block scales", "tensor scale"]


@pytest.mark.parametrize(("written", "read"), [*permutations(DIALECTS, 2)])
def test_another_dialect_is_refused_and_the_right_one_named(
    tmp_path, trained, packed, written, read
):
    # Without the marks that name it.
    tensors = {
        key.replace("weight_global_scale", "weight_scale_2").replace(
            "weight_packed", "weight"
        ): value
        for key, value in packed[written][0].items()
        if not key.endswith(".comfy_quant")
    }
    directory = _write(tmp_path / "m", trained[0], tensors)
    with pytest.raises(
        ConversionError, match=f"dialect {read}.*likely dialect: {written}"
    ):
        open_source(directory, dialect=read)
    with pytest.raises(
        ConversionError, match=f"expected --dialect.*likely.*: {written}"
    ):
        open_source(directory)


@pytest.mark.parametrize(
    ("dialect", "quantization"),
    [
        ("comfyui", None),
        ("lightx2v", None),
        ("compressed-tensors", None),
        ("modelopt", {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        ("modelopt", {"quant_method": "torchao", "quant_type": "NVFP4Config"}),
        ("modelopt-swizzled", "rewritten"),
    ],
)
def test_files_that_name_their_dialect_need_no_option(
    tmp_path, trained, packed, dialect, quantization
):
    config, notes = trained[0], None
    if quantization == "rewritten":
        text = json.dumps({"quant_method": "modelopt", "quant_algo": "NVFP4"})
        notes = {"quantization_config": text}
    elif quantization is not None:
        config = config | {"quantization_config": quantization}
    directory = _write(tmp_path / "m", config, packed[dialect][0], notes)
    assert open_source(directory).packed.dialect == dialect
    with pytest.raises(ConversionError, match=f"the files say.*{dialect}"):
        open_source(directory, dialect="bfl")


def test_unquantized_weights_decide_where_the_weights_are_silent(tmp_path):
    random = np.random.default_rng(0)
    config = {"_class_name": "CogVideoXTransformer3DModel"}
    weights = {
        f"transformer_blocks.{i}.{name}.weight": random.standard_normal(
            (128, 128), np.float32
        )
        for i in range(2)
        for name in ("attn1.to_v", "attn1.to_out.0")
    }
    plain = write_checkpoint(tmp_path / "plain", config, weights)
    packed = _write(tmp_path / "m", config, pack_checkpoint(weights, "modelopt")[0])
    # Noise has no rows and columns of its own: only the tensor scale tells.
    silent = open_source(packed, dialect="bfl")
    assert silent.packed.facts is not None
    assert silent.packed.facts["confirmed"] == ["tensor scale"]
    with pytest.raises(
        ConversionError, match=r"relative error of 1\.\d+; likely.*model"
    ):
        open_source(packed, dialect="bfl", reference=plain)
    right = open_source(packed, dialect="modelopt", reference=plain)
    assert right.packed.facts is not None
    assert 0.05 < right.packed.facts["reference_error"] < 0.15


def test_codes_and_scales_are_kept(tmp_path, trained, packed):
    tensors, decoded = packed["comfyui"]
    directory = _write(tmp_path / "m", trained[0], tensors)
    report = convert(directory, tmp_path / "ours")
    assert report.keys_quantized == len(decoded)
    assert report.source_dtypes["nvfp4"] == len(decoded)
    assert any(key.endswith("comfy_quant") for key in tensors)
    model, header = load(tmp_path / "ours")
    assert header.quantization is not None
    assert header.quantization["packed"]["dialect"] == "comfyui"
    weight = model.transformer_blocks.ff.up.weight.get_value()
    assert isinstance(weight, NVFP4Array)
    assert weight.rotation == 0
    for layer in range(LAYERS):
        expected = decoded[f"transformer_blocks.{layer}.ff.net.0.proj.weight"]
        found = np.asarray(weight.dequantize())[layer]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    codes, scales, _ = quantize(
        trained[1]["transformer_blocks.1.ff.net.0.proj.weight"].astype(np.float32)
    )
    np.testing.assert_array_equal(np.asarray(weight.codes)[1] & 15, codes[:, 0::2])
    np.testing.assert_array_equal(np.asarray(weight.block_scales)[1], scales)


def test_layers_that_are_not_packed_follow_the_option(tmp_path, trained):
    keep = ("attn1.to_q", "transformer_blocks.0.ff.net.2")
    tensors, decoded = pack_checkpoint(trained[1], "modelopt", keep=keep)
    directory = _write(tmp_path / "m", trained[0], tensors)
    convert(directory, tmp_path / "keep", dialect="modelopt")
    convert(directory, tmp_path / "nvfp4", dialect="modelopt", weights="nvfp4")
    name = "transformer_blocks.1.ff.net.2.weight"
    with CheckpointReader(tmp_path / "keep") as reader:
        specs = dict(reader.header.stacks["transformer_blocks"].parameters)
        # One layer of two is packed: stored as values, which only float32 holds.
        assert specs["ff.down.weight"].dtype == "float32"
        assert specs["attn1.to_q.weight"].dtype == "bfloat16"
        assert specs["attn1.to_k.weight"].dtype == "nvfp4"
    model, _ = load(tmp_path / "keep")
    found = np.asarray(model.transformer_blocks.ff.down.weight[...], np.float32)[1]
    np.testing.assert_array_equal(found, decoded[name])
    model, header = load(tmp_path / "nvfp4")
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    query = flat[("transformer_blocks", "attn1", "to_q", "weight")].get_value()
    # No rotation: the site's other linears came without.
    assert query.rotation == 0
    assert header.quantization is not None
    assert header.quantization["rotation"] == 0


def test_what_we_quantize_is_written_as_modelopt_does(tmp_path, trained):
    source = write_checkpoint(tmp_path / "m", *trained)
    report = convert(source, tmp_path / "ours", weights="nvfp4", rotation=0)
    back = to_diffusers(tmp_path / "ours", tmp_path / "packed", dialect="modelopt")
    config = json.loads((back / "config.json").read_text())
    assert config["quantization_config"]["quant_algo"] == "NVFP4"
    assert "proj_out" in config["quantization_config"]["exclude_modules"]
    stored = open_source(back)
    assert stored.packed.dialect == "modelopt"
    again = convert(back, tmp_path / "again")
    assert again.keys_quantized == report.keys_quantized
    # Another reading of the file: the tests' own.
    plain = to_diffusers(tmp_path / "ours", tmp_path / "plain", dtype="float32")
    key = "transformer_blocks.1.ff.net.2.weight"
    raw, values = read_index(back / f"{NAME}.safetensors"), open_source(plain).tensors
    packed = raw[key].read()
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    found = decode(codes, raw[f"{key}_scale"].read(), raw[f"{key}_scale_2"].read())
    np.testing.assert_array_equal(found, values[key].read())
    for first, second in zip(
        *(
            nnx.to_flat_state(nnx.state(load(tmp_path / name)[0]))
            for name in ("ours", "again")
        ),
        strict=True,
    ):
        one, two = first[1].get_value(), second[1].get_value()
        if isinstance(one, NVFP4Array):
            np.testing.assert_array_equal(one.codes, two.codes)
            np.testing.assert_array_equal(one.block_scales, two.block_scales)
            np.testing.assert_array_equal(one.tensor_scale, two.tensor_scale)
        else:
            np.testing.assert_array_equal(one, two)


def test_what_the_dialect_cannot_say_is_refused(tmp_path, trained):
    source = write_checkpoint(tmp_path / "m", *trained)
    convert(source, tmp_path / "rotated", weights="nvfp4")
    with pytest.raises(ConversionError, match=r"(?s)--rotation 0.*\[0-1\].*by 128"):
        to_diffusers(tmp_path / "rotated", tmp_path / "x", dialect="modelopt")
    convert(source, tmp_path / "plain")
    with pytest.raises(ConversionError, match="expected NVFP4 weights, found none"):
        to_diffusers(tmp_path / "plain", tmp_path / "x", dialect="modelopt")
    with pytest.raises(ValueError, match="dialect: expected one of"):
        to_diffusers(tmp_path / "plain", tmp_path / "x", dialect="comfyui")
    assert not (tmp_path / "x").exists()


def test_parts_that_are_missing_or_do_not_fit_are_all_named(tmp_path, trained, packed):
    tensors = dict(packed["modelopt"][0])
    stem = "transformer_blocks.0."
    del tensors[f"{stem}attn1.to_q.weight_scale"]
    del tensors[f"{stem}attn1.to_k.weight_scale_2"]
    tensors[f"{stem}attn1.to_v.weight_scale"] = np.zeros(
        (3, 16), ml_dtypes.float8_e4m3fn
    )
    directory = _write(tmp_path / "m", trained[0], tensors)
    with pytest.raises(ConversionError, match="dialect modelopt") as error:
        open_source(directory, dialect="modelopt")
    for part in ("attn1.to_q.weight_scale beside", "to_k.weight: expected", "found 48"):
        assert part in str(error.value)


def test_scales_that_cannot_be(tmp_path, trained, packed):
    tensors = dict(packed["modelopt"][0])
    name = "transformer_blocks.0.attn1.to_q.weight_scale"
    tensors[name] = -tensors[name]
    tensors[f"{name}_2"] = np.array(np.nan, np.float32)
    directory = _write(tmp_path / "m", trained[0], tensors)
    with pytest.raises(
        ConversionError, match="positive tensor scale, found nan"
    ) as error:
        open_source(directory, dialect="modelopt")
    assert "4,096 of 4,096 negative or NaN" in str(error.value)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (b"[1]", "expected a JSON object, found a list"),
        (b'{"format": NaN}', "the number NaN"),
        (b'{"format": ["nvfp4"]}', r"JSON with a format, found \['nvfp4'\]"),
        (bytes(10_000), "expected JSON with a format, found 10,000 bytes"),
    ],
    ids=lambda value: str(value[:10]),
)
def test_a_note_of_comfyui_is_a_short_json_object(
    tmp_path, trained, packed, note, message
):
    tensors = dict(packed["comfyui"][0])
    mark = next(key for key in tensors if key.endswith(".comfy_quant"))
    tensors[mark] = np.frombuffer(note, np.uint8)
    directory = _write(tmp_path / "m", trained[0], tensors)
    with pytest.raises(ConversionError, match=message):
        open_source(directory)


def test_other_quantizations_are_named(tmp_path, trained, packed):
    tensors = dict(packed["comfyui"][0])
    mark = next(key for key in tensors if key.endswith(".comfy_quant"))
    tensors[mark] = np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)
    directory = _write(tmp_path / "m", trained[0], tensors)
    with pytest.raises(ConversionError, match="found float8_e4m3fn, nvfp4 in"):
        open_source(directory)
    plain = write_checkpoint(tmp_path / "plain", *trained)
    with pytest.raises(
        ConversionError, match=r"expected packed weights .*, found none"
    ):
        open_source(plain, dialect="bfl")
    with pytest.raises(ValueError, match="dialect: expected one of"):
        open_source(plain, dialect="gguf")
