"""The autoencoder benchmark on a tiny network: all parts run, the file is complete."""

import json

import pytest

from benchmarks import vae
from sixbit_jax.benchmark import records
from sixbit_jax.vae.causal_conv import METHODS
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig

TINY = CogVideoXVAEConfig(
    block_out_channels=(4, 8),
    latent_channels=2,
    layers_per_block=1,
    norm_num_groups=2,
    temporal_compression_ratio=2,
)
OPERATIONS = {
    "causal_conv",
    "group_statistics",
    "group_norm_silu",
    "spatial_norm_silu",
    "upsample",
}


@pytest.fixture
def words(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY.to_dict()))
    size = ["--frames", "2", "--height", "2", "--width", "3", "--repeats", "1"]
    return ["--config", str(config), *size, "--out", str(tmp_path / "vae.json")]


def _in_process(args, job):
    yield from vae.run_job(vae.parse([*vae._words(args), "--out", "-", "--job", job]))


def test_flops_are_those_of_the_published_decoder():
    flops = vae.decoder_flops(CogVideoXVAEConfig(), (13, 60, 90))
    assert flops / 1e12 == pytest.approx(315, rel=0.02)


@pytest.mark.slow
def test_every_part_and_one_decoder_are_timed(words, tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "_spawn", _in_process)
    monkeypatch.setattr(vae, "_CHECKED", (1, 2, 3))
    assert vae.main([*words, "--only", "stacked", "--only", "parts"]) == 0
    content = records.read(tmp_path / "vae.json")
    decoder, *parts = content["records"]
    assert decoder["program"] == "stacked"
    assert 0 < decoder["first_frames_s"] <= decoder["decode_s"]
    assert 0 < decoder["relative_error"] < 0.03
    assert {part["op"] for part in parts} == OPERATIONS
    convolutions = {p["implementation"] for p in parts if p["op"] == "causal_conv"}
    assert convolutions == set(METHODS)
    assert all(part["median_us"] > 0 for part in parts)
    assert all(record["model"] == "cogvideox" for record in content["records"])
    assert "--only stacked --only parts" in content["command"]


def test_each_model_has_its_own_default_video():
    sizes = {
        model: (args.frames, args.height, args.width)
        for model in vae.SIZES
        for args in [vae.parse(["--model", model, "--out", "-"])]
    }
    assert sizes == {"cogvideox": (13, 60, 90), "hunyuan-video": (33, 90, 160)}
    assert vae.network_of("hunyuan-video").class_name == "AutoencoderKLHunyuanVideo"


def test_a_job_that_fails_is_a_record_and_an_exit_status(words, tmp_path, monkeypatch):
    monkeypatch.setattr(
        vae.subprocess,
        "run",
        lambda *a, **k: vae.subprocess.CompletedProcess(a, 1, '{"a": 1}\n', "no GPU"),
    )
    assert vae.main([*words, "--only", "conv3d"]) == 1
    found = records.read(tmp_path / "vae.json")["records"]
    assert found[0]["a"] == 1
    assert (found[1]["program"], found[1]["failure"]) == ("conv3d", "no GPU")
