"""HunyuanVideo under the key names of its original repository."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from convert import convert
from convert.errors import ConversionError
from convert.original_hunyuan import renamed
from convert.reader import open_source
from convert.safetensors_file import TensorInfo, write_file
from sixbit_jax.checkpoint import load
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from tests.convert.checkpoints import write_checkpoint
from tests.convert.hunyuan_files import NAMES, in_comfy, original
from tests.convert.torch_files import write_state_dict
from tests.golden import hunyuan_video_cases as cases

CASE = "t2v_128_f2_8x6_t7"


def info(rows, columns=2):
    return TensorInfo(np.dtype(np.float32), (rows, columns), Path("x"), 0)


@pytest.mark.parametrize("spelled", [str, in_comfy], ids=["authors", "comfyui"])
def test_names_and_rows_are_those_that_diffusers_gives(spelled):
    width = {"single_blocks.0.linear1": 3072}
    for key, parts in NAMES.items():
        rows = max(stop for runs in parts.values() for _, stop in runs)
        patch = info(width.get(key.rpartition(".")[0], 3))
        given = {"img_in.proj.weight": patch} | {spelled(key): info(rows)}
        found = renamed(given)
        if key != "img_in.proj.weight":
            found.pop("x_embedder.proj.weight")
        assert found.keys() == parts.keys()
        for name, runs in parts.items():
            one = found[name]
            got = getattr(one, "runs", None) or [
                (one.offset // 8, one.offset // 8 + one.shape[0])
            ]
            assert [list(run) for run in got] == runs, name


@pytest.mark.parametrize("kind", ["safetensors", "pth", "comfyui"])
def test_the_original_file_is_the_same_network(tmp_path, kind):
    case = cases.load(CASE)
    weights = case.weights()
    write_checkpoint(tmp_path / "diffusers", case.config, weights)
    folder = tmp_path / "original"
    folder.mkdir()
    theirs = original(weights)
    assert sum(a.size for a in theirs.values()) == sum(a.size for a in weights.values())
    if kind == "pth":
        write_state_dict(folder / "model.pth", theirs)
    elif kind == "comfyui":
        prefix = "model.diffusion_model."
        named = {prefix + in_comfy(k): v for k, v in theirs.items()}
        write_file(folder / "model.safetensors", named)
    else:
        write_file(folder / "model.safetensors", theirs)
    config = HunyuanVideoConfig.from_dict(open_source(folder).config)
    assert config == HunyuanVideoConfig.from_dict(case.config)
    for name in ("diffusers", "original"):
        convert(tmp_path / name, tmp_path / f"ours-{name}")
    ours, other = (
        nnx.to_flat_state(nnx.state(load(tmp_path / f"ours-{name}")[0]))
        for name in ("diffusers", "original")
    )
    for (path, one), (_, two) in zip(ours, other, strict=True):
        np.testing.assert_array_equal(one.get_value(), two.get_value(), str(path))


def test_other_keys_and_matrices_of_other_sizes_are_listed():
    given = {
        "img_in.proj.weight": info(3),
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": info(3),
        "double_blocks.0.img_attn_qkv.weight": info(10),
        "single_blocks.0.linear1.bias": info(9),
        "final_layer.adaLN_modulation.1.bias": info(5),
        "double_blocks.0.img_attn_qkv.weight_scale_2": info(1),
        "audio_in.weight": info(3),
    }
    with pytest.raises(ConversionError) as caught:
        renamed(given)
    text = str(caught.value)
    for part in ("audio_in.weight", "weight_scale_2", "does not fit", "[10, 2]"):
        assert part in text
    assert "linear1.bias [9, 2]" in text
    assert "modulation.1.bias [5, 2]" in text
