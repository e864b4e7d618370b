"""LoRA and GGUF files for HunyuanVideo under its authors' names."""

import numpy as np
import pytest
from flax import nnx

from convert import ConversionError, convert
from sixbit_jax.checkpoint import load
from tests.convert.checkpoints import converted, write_checkpoint
from tests.convert.hunyuan_files import in_comfy, original
from tests.convert.lora_files import write
from tests.convert.test_gguf_file import write as write_gguf
from tests.golden import hunyuan_video_cases as cases

CASE = cases.load("t2v_128_f2_8x6_t7")
WEIGHTS = CASE.weights()
THEIRS = original(WEIGHTS)
STEMS = [
    "double_blocks.0.img_attn_qkv",
    "double_blocks.0.txt_mlp.fc1",
    "single_blocks.0.linear1",
    "single_blocks.0.modulation.linear",
    "final_layer.adaLN_modulation.1",
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
]
# Prefix, names of down and up, whether dots become _, whether ComfyUI's spelling.
NAMINGS = {
    "kohya": ("lora_unet_", "lora_down", "lora_up", True, False),
    "comfyui": ("diffusion_model.", "lora_down", "lora_up", False, True),
    "peft": ("transformer.", "lora_A", "lora_B", False, False),
}


def _lora(naming):
    """The tensors of a file, and the authors' weights with them added."""
    prefix, down, up, flat, comfy = NAMINGS[naming]
    draw = np.random.default_rng(3)
    tensors, summed = {}, dict(THEIRS)
    for number, stem in enumerate(STEMS):
        weight = THEIRS[f"{stem}.weight"]
        rank, alpha = 2 + number % 2, 1.0 + number
        a = (draw.standard_normal((rank, weight.shape[1])) * 0.2).astype("f")
        b = (draw.standard_normal((weight.shape[0], rank)) * 0.2).astype("f")
        name = in_comfy(f"{stem}.")[:-1] if comfy else stem
        name = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{name}.{down}.weight": a, f"{name}.{up}.weight": b}
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
        summed[f"{stem}.weight"] = weight + alpha / rank * (b @ a)
    bias = draw.standard_normal(THEIRS["single_blocks.0.linear1.bias"].shape)
    name = "single_blocks.0.linear1"
    name = prefix + (name.replace(".", "_") if flat else name)
    tensors[f"{name}.diff_b"] = bias.astype("f")
    summed["single_blocks.0.linear1.bias"] = THEIRS[
        "single_blocks.0.linear1.bias"
    ] + bias.astype("f")
    return tensors, summed


@pytest.mark.parametrize("naming", NAMINGS)
def test_joined_linears_get_their_rows(tmp_path, naming):
    source = write_checkpoint(tmp_path / "m", CASE.config, WEIGHTS)
    tensors, summed = _lora(naming)
    file = write(tmp_path / "lora.safetensors", tensors)
    report = convert(source, tmp_path / "out", lora=[f"{file}"])
    assert report.loras[0]["keys_read"] == len(tensors)
    write(tmp_path / "summed.safetensors", summed)
    convert(tmp_path / "summed.safetensors", tmp_path / "expected")
    found, expected = (
        nnx.to_flat_state(nnx.state(load(tmp_path / name)[0]))
        for name in ("out", "expected")
    )
    for (path, one), (_, two) in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one.get_value(), two.get_value(), rtol=1e-5, atol=1e-5, err_msg=str(path)
        )
    plain = converted(tmp_path / "out")
    key = "single_transformer_blocks.0.attn.to_k.weight"
    assert np.abs(plain[key] - WEIGHTS[key]).max() > 1e-2


def test_rows_that_cannot_be_cut_are_named(tmp_path):
    source = write_checkpoint(tmp_path / "m", CASE.config, WEIGHTS)
    tensors, _ = _lora("peft")
    name = "transformer.double_blocks.0.img_attn_qkv.lora_B.weight"
    tensors[name] = tensors[name][:-1].copy()
    file = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(ConversionError, match=r"img_attn_qkv\.lora_B"):
        convert(source, tmp_path / "out", lora=[file])


@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_gguf_with_original_names_is_the_network(tmp_path, kind):
    import gguf

    kinds = {
        name: gguf.GGMLQuantizationType[kind]
        for name, array in THEIRS.items()
        if array.ndim == 2 and array.shape[1] % 32 == 0 and "weight" in name
    }
    assert len(kinds) > 8
    found = write_gguf(tmp_path / "h.gguf", THEIRS, kinds=kinds, arch="hyvid")
    decoded = {k: np.asarray(v).reshape(THEIRS[k].shape) for k, v in found.items()}
    convert(tmp_path / "h.gguf", tmp_path / "out")
    write(
        tmp_path / "plain.safetensors", {k: v.astype("f") for k, v in decoded.items()}
    )
    convert(tmp_path / "plain.safetensors", tmp_path / "expected")
    values, expected = (converted(tmp_path / name) for name in ("out", "expected"))
    assert values.keys() == expected.keys()
    for key, value in values.items():
        np.testing.assert_allclose(
            value.astype("f"), expected[key].astype("f"), atol=1e-6, err_msg=key
        )
