"""Roots of Wan's authors become the pipelines that diffusers' roots become."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import convert
from convert import ConversionError
from convert.command import main as convert_main
from convert.root import convert_root
from sixbit_jax import components
from sixbit_jax.checkpoint import read_header
from sixbit_jax.cli import main
from sixbit_jax.pipelines.header import read_pipeline_header
from tests.convert.checkpoints import converted
from tests.convert.lora_files import original
from tests.convert.torch_files import whole, write_torch_file
from tests.golden.tokenizer_cases import unpack
from tests.golden.wan_root_cases import (
    CLIP_FILE,
    FOLDER,
    T5_FILE,
    VAE_FILES,
    network,
    write_diffusers_root,
)

AUTHORS = {"_class_name": "WanModel", "dim": 128, "model_type": "t2v"}


def _networks(version="2.1", *, image=False, pair=False):
    first = network(version, image=image)
    second = {key: value[::-1].copy() for key, value in first.items()}
    return {"transformer": first, **({"transformer_2": second} if pair else {})}


def write_authors_root(folder: Path, version: str, networks, image=False) -> Path:
    """As the authors publish it: networks by safetensors, the rest by torch.save."""
    folder.mkdir()
    places = [folder]
    if len(networks) == 2:
        places = [folder / "high_noise_model", folder / "low_noise_model"]
    for place, weights in zip(places, networks.values(), strict=True):
        place.mkdir(exist_ok=True)
        named = {original(key): value for key, value in weights.items()}
        save_file(named, place / "diffusion_pytorch_model.safetensors")
        (place / "config.json").write_text(json.dumps(AUTHORS))
    for name in (T5_FILE, VAE_FILES[version], *([CLIP_FILE] if image else [])):
        shutil.copyfile(FOLDER / name, folder / name)
    (folder / "google").mkdir()
    unpack("umt5", folder).rename(folder / "google" / "umt5-xxl")
    return folder


CASES = {
    "wan 2.1 t2v": {"version": "2.1"},
    "wan 2.1 i2v": {"version": "2.1", "image": True},
    "wan 2.2 a14b": {"version": "2.1", "pair": True},
    "wan 2.2 ti2v": {"version": "2.2"},
}


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_and_number_is_that_of_the_diffusers_root(tmp_path, name):
    case = CASES[name]
    version, image = case["version"], case.get("image", False)
    networks = _networks(version, image=image, pair=case.get("pair", False))
    theirs = write_authors_root(tmp_path / "theirs", version, networks, image)
    ours = write_diffusers_root(tmp_path / "ours", version, networks, image)
    assert convert_main([str(theirs), str(tmp_path / "a")]) == 0
    convert_root(ours, tmp_path / "b")
    found, wanted = (read_pipeline_header(tmp_path / x) for x in "ab")
    assert found.components == wanted.components
    assert found.pipeline_class == wanted.pipeline_class
    assert found.options == wanted.options
    assert found.scheduler is None
    for part in found.components:
        values, expected = (converted(tmp_path / x / part) for x in "ab")
        assert values.keys() == expected.keys()
        for key, value in values.items():
            np.testing.assert_array_equal(
                value.astype(np.float32), expected[key].astype(np.float32), key
            )
        a, b = (read_header(tmp_path / x / part).config for x in "ab")
        kind = components.get(found.components[part])[0]
        if part == "vae" and version == "2.2":
            assert a["latents_std"][-1] == 0.7744
        # What no file of the authors says, and our root has other numbers for.
        b |= {name: a[name] for name in ("latents_mean", "latents_std") if name in a}
        b.pop("rope_max_seq_len", None)
        assert kind.from_dict(a) == kind.from_dict(b), part
    tokens = [
        sorted(p.name for p in (tmp_path / x / "tokenizer").iterdir()) for x in "ab"
    ]
    assert tokens[0] == tokens[1]
    assert (tmp_path / "a" / "image_processor").is_dir() == image


def test_the_pipeline_makes_the_video_of_the_diffusers_root(tmp_path):
    networks = _networks()
    theirs = write_authors_root(tmp_path / "theirs", "2.1", networks)
    ours = write_diffusers_root(tmp_path / "ours", "2.1", networks, False)
    videos = []
    for root in (theirs, ours):
        out = tmp_path / f"{root.name}-out"
        assert main(["convert", str(root), str(out), "--weights", "nvfp4"]) == 0
        words = ["generate", str(out), "--prompt", "a red circle", "--frames", "5"]
        words += ["--size", "32x32", "--steps", "2", "--shift", "3", "--seed", "1"]
        video = tmp_path / f"{root.name}.gif"
        assert main([*words, "--out", str(video)]) == 0
        videos.append(video.read_bytes())
    assert len(videos[0]) > 2000
    assert videos[0] == videos[1]


def test_what_is_missing_or_there_twice_is_one_message(tmp_path, capsys):
    root = write_authors_root(tmp_path / "root", "2.1", _networks())
    (root / T5_FILE).unlink()
    shutil.copyfile(FOLDER / VAE_FILES["2.1"], root / "Wan2.1_VAE_copy.pth")
    shutil.rmtree(root / "google")
    assert convert_main([str(root), str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "text_encoder: expected one file models_t5_*.pth, found none" in message
    assert "found Wan2.1_VAE.pth, Wan2.1_VAE_copy.pth" in message
    assert "tokenizer: expected a folder google/umt5-xxl/" in message
    assert not (tmp_path / "out").exists()
    argv = [str(root), str(tmp_path / "out"), "--only", "transformer"]
    assert convert_main(argv) == 0
    header = read_pipeline_header(tmp_path / "out")
    assert header.missing == dict.fromkeys(("vae", "text_encoder"), "not asked for")
    assert convert_main([*argv[:1], str(tmp_path / "b"), "--only", "clip"]) == 1
    said = "only: expected some of transformer, vae, text_encoder; found clip"
    assert said in capsys.readouterr().err


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    root = write_authors_root(tmp_path / "root", "2.1", _networks())
    shutil.copyfile(FOLDER / VAE_FILES["2.1"], root / T5_FILE)
    with pytest.raises(
        ConversionError, match="expected UMT5EncoderModel, found AutoencoderKLWan"
    ):
        convert_root(root, tmp_path / "out")
    shutil.copyfile(FOLDER / T5_FILE, root / T5_FILE)
    tensors = {"decoder.x": whole(np.ones(2, np.float32), "0")}
    write_torch_file(root / VAE_FILES["2.1"], tensors)
    with pytest.raises(ConversionError, match=r"vae: .* 'WanModel'"):
        convert_root(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "model_class"),
    [
        (VAE_FILES["2.1"], "AutoencoderKLWan"),
        (VAE_FILES["2.2"], "AutoencoderKLWan"),
        (T5_FILE, "UMT5EncoderModel"),
        (CLIP_FILE, "CLIPVisionModel"),
    ],
)
def test_a_file_alone_is_converted_beside_the_config_of_another(
    tmp_path, file, model_class
):
    shutil.copyfile(FOLDER / file, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps(AUTHORS))
    report = convert.convert(tmp_path / file, tmp_path / "out")
    assert report.model_class == model_class
    if model_class.startswith("CLIP"):
        assert "log_scale" in report.keys_ignored
        assert "visual.head" in report.keys_ignored


def test_wans_vae_for_comfyui_is_the_same(tmp_path):
    from convert.torch_file import read_index

    tensors = read_index(FOLDER / VAE_FILES["2.1"])
    arrays = {key: info.read().astype(np.float32) for key, info in tensors.items()}
    save_file(arrays, tmp_path / "wan_2.1_vae.safetensors")
    convert.convert(tmp_path / "wan_2.1_vae.safetensors", tmp_path / "a")
    convert.convert(FOLDER / VAE_FILES["2.1"], tmp_path / "b")
    a, b = (converted(tmp_path / x) for x in "ab")
    assert a.keys() == b.keys()
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key].astype(np.float32))


def test_the_text_encoder_of_comfyui_needs_no_config(tmp_path):
    from tests.golden.wan_root_cases import ENCODER, shapes, weights_of

    weights = weights_of("text_encoder", shapes()["text_encoder"])
    weights["spiece_model"] = np.arange(9, dtype=np.uint8)
    save_file(weights, tmp_path / "umt5_xxl_fp16.safetensors")
    report = convert.convert(tmp_path / "umt5_xxl_fp16.safetensors", tmp_path / "out")
    assert report.model_class == "UMT5EncoderModel"
    assert "spiece_model" in report.keys_ignored
    found = read_header(tmp_path / "out").config
    assert {k: ENCODER[k] for k in found if k != "architectures"} == {
        k: v for k, v in found.items() if k != "architectures"
    }
    for key, value in converted(tmp_path / "out").items():
        np.testing.assert_array_equal(value, weights[key])
