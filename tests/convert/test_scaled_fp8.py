"""float8 weights with scales, written with NumPy in the namings of other programs."""

import json

import ml_dtypes
import numpy as np
import pytest

from convert import convert
from convert.errors import ConversionError
from convert.reader import open_source
from convert.safetensors_file import write_file
from sixbit_jax.checkpoint import load
from tests.convert.checkpoints import golden
from tests.golden import wan_cases

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2 = np.dtype(ml_dtypes.float8_e5m2)
# Name of the scale, of what concerns activations, and whether the file is marked.
NAMINGS = {
    "scale_weight": ("scale_weight", "scale_input", True),
    "weight_scale": ("weight_scale", "input_scale", False),
    "comfy_quant": ("weight_scale", "input_scale", False),
}
SHAPES = {"tensor": (), "one": (1,), "rows": (-1,), "column": (-1, 1)}


def _scaled(weights, *, naming, shape, dtype):
    """The tensors of the file, and the weights that they stand for."""
    scale_name, activation, marked = NAMINGS[naming]
    tensors, decoded = {}, {}
    for key, weight in weights.items():
        if "blocks." not in key or not key.endswith(".weight") or weight.ndim != 2:
            tensors[key] = weight
            continue
        stem, weight = key.removesuffix("weight"), weight.astype(np.float32)
        rows = shape in ("rows", "column")
        largest = np.abs(weight).max(axis=1 if rows else None, keepdims=rows)
        scale = (largest / 400).astype(np.float32)
        codes = (weight / scale).astype(dtype)
        decoded[key] = codes.astype(np.float32) * scale
        tensors[key] = codes
        tensors[stem + scale_name] = scale.reshape(SHAPES[shape])
        tensors[stem + activation] = np.array(1.0, np.float32)
        if naming == "comfy_quant":
            text = json.dumps({"format": np.dtype(dtype).name}).encode()
            tensors[f"{stem}comfy_quant"] = np.frombuffer(text, np.uint8)
    if marked:
        tensors["scaled_fp8"] = np.zeros(0, dtype)
    return tensors, decoded


def _write(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_file(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("naming", NAMINGS)
def test_scaled_weights_are_read_with_their_scales(
    tmp_path, naming, shape, dtype, prefix
):
    case = golden()
    tensors, decoded = _scaled(case.weights(), naming=naming, shape=shape, dtype=dtype)
    behind = {prefix + name: value for name, value in tensors.items()}
    source = open_source(_write(tmp_path / "m", case.config, behind))
    assert source.tensors.keys() == case.weights().keys()
    for key, expected in decoded.items():
        info = source.tensors[key]
        assert info.dtype_name == f"scaled {dtype.name}"
        np.testing.assert_array_equal(info.read(), expected)
    left = {name for name in tensors if name.endswith(("input", "quant", "_fp8"))}
    left |= {name for name in tensors if name.endswith("input_scale")}
    assert set(source.packed.unused) == left


def _original(weights):
    names = json.loads((wan_cases.FOLDER / "original_names.json").read_text())
    back = {theirs: original for original, theirs in names.items()}
    found = {}
    for key, value in weights.items():
        parts = key.split(".")
        inside = parts[0] == "blocks"
        name = back[".".join(["blocks", "0", *parts[2:]]) if inside else key]
        found[name.replace(".0.", f".{parts[1]}.", 1) if inside else name] = value
    return found


def test_original_names_of_wan_are_read_scaled(tmp_path):
    case = wan_cases.load("t2v_128_f2_8x6_t7_rows")
    weights = _original(case.weights())
    tensors, decoded = _scaled(
        weights, naming="scale_weight", shape="tensor", dtype=E4M3
    )
    write_file(tmp_path / "model.safetensors", tensors)
    report = convert(tmp_path / "model.safetensors", tmp_path / "ours")
    assert report.source_dtypes["scaled float8_e4m3fn"] == len(decoded)
    model, _ = load(tmp_path / "ours")
    found = model.blocks.ffn.up.weight[...]
    assert found.dtype == "float32"
    for layer in range(found.shape[0]):
        np.testing.assert_array_equal(
            found[layer], decoded[f"blocks.{layer}.ffn.0.weight"]
        )
    packed = convert(
        tmp_path / "model.safetensors", tmp_path / "nvfp4", weights="nvfp4"
    )
    assert packed.keys_quantized >= len(decoded)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected scale_weight or weight_scale beside it, found neither"),
        (np.array(np.nan, np.float32), "expected positive, finite scales"),
        (np.array(-1.0, np.float32), "expected positive, finite scales"),
        (np.array(0.0, np.float32), "expected positive, finite scales"),
        (np.ones((3, 7), np.float32), r"one for each of \d+ rows, found float32"),
        (np.array(1, np.int32), "expected one float"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path, value, message):
    case = golden()
    tensors, _ = _scaled(
        case.weights(), naming="scale_weight", shape="tensor", dtype=E4M3
    )
    name = "transformer_blocks.1.attn1.to_q.scale_weight"
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(ConversionError, match=f"to_q.*{message}"):
        open_source(_write(tmp_path / "m", case.config, tensors))


@pytest.mark.parametrize("shape", [(0,), (2,), ()])
@pytest.mark.parametrize("dtype", [E4M3, np.float32], ids=str)
def test_the_mark_of_a_scaled_file_has_any_of_its_sizes(tmp_path, shape, dtype):
    case = wan_cases.load("t2v_f1_6x4_t3_rows")
    tensors, decoded = _scaled(
        case.weights(), naming="scale_weight", shape="tensor", dtype=E4M3
    )
    tensors["scaled_fp8"] = np.zeros(shape, dtype)
    source = open_source(_write(tmp_path / "m", case.config, tensors))
    assert source.packed.unused[-1] == "scaled_fp8"
    for key, value in decoded.items():
        np.testing.assert_array_equal(source.tensors[key].read(), value)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"format": "mxfp8"}, "expected the format 'float8_e4m3fn' .* found 'mxfp8'"),
        ({"format": "float8_e5m2"}, "found 'float8_e5m2'"),
        ({}, "expected JSON with a format"),
        ([1], "expected JSON with a format"),
    ],
)
def test_a_note_of_another_format_is_refused(tmp_path, note, message):
    case = wan_cases.load("t2v_f1_6x4_t3_rows")
    tensors, _ = _scaled(
        case.weights(), naming="comfy_quant", shape="tensor", dtype=E4M3
    )
    name = next(name for name in tensors if name.endswith("comfy_quant"))
    tensors[name] = np.frombuffer(json.dumps(note).encode(), np.uint8)
    with pytest.raises(ConversionError, match=message):
        open_source(_write(tmp_path / "m", case.config, tensors))


def test_scales_per_block_are_named(tmp_path):
    case = wan_cases.load("t2v_f1_6x4_t3_rows")
    tensors, _ = _scaled(
        case.weights(), naming="weight_scale", shape="tensor", dtype=E4M3
    )
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name] = np.ones((2, 3), np.float32)
    with pytest.raises(ConversionError, match="scales per block are not read"):
        open_source(_write(tmp_path / "m", case.config, tensors))


def test_a_scale_beside_another_weight_is_refused(tmp_path):
    case = golden()
    tensors = case.weights() | {
        "transformer_blocks.0.attn1.to_q.scale_weight": np.array(2.0, np.float32)
    }
    with pytest.raises(ConversionError, match=r"to_q\.scale_weight: expected a float8"):
        open_source(_write(tmp_path / "m", case.config, tensors))


def test_a_product_that_float32_does_not_hold_is_refused(tmp_path):
    case = golden()
    tensors, _ = _scaled(
        case.weights(), naming="scale_weight", shape="tensor", dtype=E4M3
    )
    name = "transformer_blocks.1.attn1.to_q"
    tensors[f"{name}.scale_weight"] = np.array(3e38, np.float32)
    source = _write(tmp_path / "m", case.config, tensors)
    with pytest.raises(ConversionError, match=f"{name}.weight: expected finite"):
        convert(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_float8_without_scales_is_read_as_it_is(tmp_path):
    case = golden()
    tensors = {
        key: value.astype(E4M3) if value.ndim == 2 else value
        for key, value in case.weights().items()
    }
    source = open_source(_write(tmp_path / "m", case.config, tensors))
    assert source.tensors["proj_out.weight"].dtype == E4M3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight.absmax", np.ones(3, np.float32), "bitsandbytes"),
        ("weight.quant_state.bitsandbytes__nf4", np.ones(3, np.uint8), "bitsandbytes"),
        ("SCB", np.ones(3, np.float32), "bitsandbytes"),
        ("wscales", np.ones(3, np.float32), "SVDQuant"),
        ("qzeros", np.ones(3, np.int32), "GPTQ or AWQ"),
        ("weight._data", np.ones((3, 3), np.int8), "quanto"),
        ("weight_scale_inv", np.ones((3, 3), np.float32), "scales per block"),
        ("weight", np.ones((3, 3), np.int8), "int8"),
        ("pre_quant_scale", np.ones(3, np.float32), "AWQ"),
        ("weight_scale", np.ones((128, 4), np.uint8), "MXFP8"),
    ],
)
def test_other_quantizations_are_refused_by_name(tmp_path, key, value, message):
    case = golden()
    stem = "transformer_blocks.0.attn1.to_q."
    tensors = case.weights() | {stem + key: value}
    if key == "weight_scale":
        tensors[f"{stem}weight"] = tensors[f"{stem}weight"].astype(E4M3)
    with pytest.raises(ConversionError, match=f"quantized by .*{message}"):
        open_source(_write(tmp_path / "m", case.config, tensors))


def test_the_configuration_names_a_quantization_that_is_not_read(tmp_path):
    case = golden()
    config = dict(case.config) | {"quantization_config": {"quant_method": "quanto"}}
    with pytest.raises(ConversionError, match=r"quanto .*quant_method 'quanto'"):
        open_source(_write(tmp_path / "m", config, case.weights()))
