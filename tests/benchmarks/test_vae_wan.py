"""The benchmark of the Wan autoencoder: arithmetic, parts, a tiny run."""

import json

import jax
import pytest

from benchmarks import vae_wan, vae_wan_parts
from sixbit_jax.benchmark import records
from sixbit_jax.vae.wan_config import WanVAEConfig

TINY = {
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


def test_arithmetic_is_that_of_the_published_network():
    flops = vae_wan.decoder_flops(WanVAEConfig(), (21, 60, 104))
    assert flops == pytest.approx(274e12, rel=0.01)


def test_parts_have_the_shapes_of_one_chunk_of_480p():
    shapes = {}
    for part in vae_wan_parts.all_parts(WanVAEConfig(), 60, 104):
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


def test_a_run_writes_records(tmp_path):
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    out = tmp_path / "found.json"
    words = ["--config", str(config), "--frames", "3", "--height", "4", "--width", "4"]
    words += ["--repeats", "1", "--only", "chunk 2", "--only", "torch"]
    assert vae_wan.main([*words, "--out", str(out)]) == 0
    (record,) = records.read(out)["records"]
    assert (record["model"], record["program"]) == ("tiny", "chunk 2")
    assert 0 < record["first_s"] <= record["decode_s"]
    assert record["relative_error"] < 0.1
