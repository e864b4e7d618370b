"""The autoencoder benchmark on tiny networks: all parts run, the file is complete."""

import json
import subprocess

import jax
import pytest

from benchmarks.vae import __main__ as command
from benchmarks.vae import jobs, parts_wan
from benchmarks.vae.subjects import PARTS, SUBJECTS, TORCH, jobs_of
from sixbit_jax.benchmark import records
from sixbit_jax.vae.causal_conv import METHODS
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.wan_config import WanVAEConfig

TINY = CogVideoXVAEConfig(
    block_out_channels=(4, 8),
    latent_channels=2,
    layers_per_block=1,
    norm_num_groups=2,
    temporal_compression_ratio=2,
)
TINY_WAN = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2],
    "temperal_downsample": [True],
    "num_res_blocks": 1,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 2,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
OPERATIONS = {
    "causal_conv",
    "group_statistics",
    "group_norm_silu",
    "spatial_norm_silu",
    "upsample",
}


def words_for(tmp_path, model, values):
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(values))
    size = ["--frames", "2", "--height", "2", "--width", "3", "--repeats", "1"]
    words = ["--model", model, "--config", str(config), *size]
    return [*words, "--out", str(tmp_path / "vae.json")]


@pytest.fixture
def words(tmp_path):
    return words_for(tmp_path, "cogvideox", TINY.to_dict())


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run in this process, and check bf16 on a tiny video."""

    def spawn(args, job):
        words = [*command.words_of(args), "--out", "-", "--job", job]
        yield from jobs.run_job(command.parse(words))

    monkeypatch.setattr(command, "spawn", spawn)
    monkeypatch.setattr(jobs, "CHECKED", (1, 2, 3))


@pytest.mark.parametrize(
    ("model", "config", "size", "teraflops"),
    [
        ("cogvideox", CogVideoXVAEConfig(), (13, 60, 90), 315),
        ("wan-2.1", WanVAEConfig(), (21, 60, 104), 274),
    ],
)
def test_flops_are_those_of_the_published_decoder(model, config, size, teraflops):
    assert SUBJECTS[model].size == size
    flops = SUBJECTS[model].flops(config, size)
    assert flops / 1e12 == pytest.approx(teraflops, rel=0.02)


@pytest.mark.slow
def test_every_part_a_decoder_and_the_encoder_are_timed(words, tmp_path, in_process):
    only = [w for name in ("stacked", "parts", "encode") for w in ("--only", name)]
    assert command.main([*words, *only]) == 0
    content = records.read(tmp_path / "vae.json")
    decoder, *others = content["records"]
    assert decoder["program"] == "stacked"
    assert 0 < decoder["first_frames_s"] <= decoder["decode_s"]
    assert 0 < decoder["relative_error"] < 0.03
    encoders = [record for record in others if "encode_s" in record]
    assert [e["program"] for e in encoders] == ["encode, bfloat16", "encode, float32"]
    found = [record for record in others if "op" in record]
    assert {part["op"] for part in found} == OPERATIONS
    convolutions = {p["implementation"] for p in found if p["op"] == "causal_conv"}
    assert convolutions == set(METHODS)
    assert all(part["median_us"] > 0 for part in found)
    assert all(record["model"] == "tiny" for record in content["records"])
    assert "--only stacked --only parts" in content["command"]


def test_parts_have_the_shapes_of_one_chunk_of_480p():
    shapes = {}
    for part in parts_wan.all_parts(WanVAEConfig(), 60, 104):
        operands = jax.eval_shape(part.operands, jax.random.key(0))
        jax.eval_shape(part.function, *operands)
        shapes.setdefault(part.op, []).append(part.shape)
    assert shapes["level 3"] == [(4, 480, 832, 96)]
    assert shapes["rms_silu"] == [
        (1, 60, 104, 384),
        (2, 120, 208, 384),
        (4, 240, 416, 192),
        (4, 480, 832, 96),
    ]
    assert shapes["upsample 2d"] == shapes["rms_silu"][:3]


def test_a_process_of_its_own_writes_records(tmp_path):
    words = words_for(tmp_path, "wan-2.1", TINY_WAN)
    assert command.main([*words, "--only", "chunk 2", "--only", "torch"]) == 0
    record, peer = records.read(tmp_path / "vae.json")["records"]
    assert "decode_s" in peer or "PyTorch" in peer["left_out"]
    assert (record["model"], record["program"]) == ("tiny", "chunk 2")
    assert 0 < record["first_frames_s"] <= record["decode_s"]
    assert record["relative_error"] < 0.1


def test_each_model_has_its_own_default_video_and_jobs():
    for model, subject in SUBJECTS.items():
        args = command.parse(["--model", model, "--out", "-"])
        assert (args.frames, args.height, args.width) == subject.size
        assert subject.network().class_name == subject.class_name
        assert subject.config(None) is not None
    assert "whole chunks" in jobs_of(SUBJECTS["cogvideox"])
    assert "chunk 7" in jobs_of(SUBJECTS["wan-2.2"])
    assert not {PARTS, TORCH} & set(jobs_of(SUBJECTS["hunyuan-video"]))


def test_a_job_that_fails_is_a_record_and_an_exit_status(words, tmp_path, monkeypatch):
    monkeypatch.setattr(
        command.subprocess,
        "run",
        lambda *a, **k: subprocess.CompletedProcess(a, 1, '{"a": 1}\n', "no GPU"),
    )
    assert command.main([*words, "--only", "conv3d"]) == 1
    found = records.read(tmp_path / "vae.json")["records"]
    assert found[0]["a"] == 1
    assert (found[1]["program"], found[1]["failure"]) == ("conv3d", "no GPU")
