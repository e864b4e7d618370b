"""The quality harness on a tiny random Wan: six sites, flow matching."""

import numpy as np
import pytest

from benchmarks.quality import study as quality
from benchmarks.quality import wan as quality_wan
from benchmarks.quality.calibrate import Targets
from benchmarks.quality.rows import ROWS
from benchmarks.quality.runs import Options
from sixbit_jax.demo.wan import WAN
from sixbit_jax.sampling.schedulers import FlowMatchEuler

FRAMES = (2, 3, 32, 32)


@pytest.fixture(scope="module")
def report():
    model = quality.random_model(WAN, num_layers=2, num_attention_heads=2, ffn_dim=128)
    return quality.run(
        model,
        methods=("w4a8", "w4a4", "static"),
        captions=2,
        seeds=[1],
        calibration_captions=2,
        options=Options(num_steps=3, guidance_scale=5.0, batch=2, dtype="float32"),
        targets=Targets(points=3),
        latent_shape=FRAMES,
        scheduler=FlowMatchEuler(shift=3.0),
    )


@pytest.mark.slow
def test_rows_cover_the_sites_of_cross_attention(report):
    rows = {r["method"]: r for r in report.records() if r["kind"] == "quality"}
    assert report.arrays["w4a4/nvfp4_map"].shape == (3, 2, 2, 6)
    np.testing.assert_array_equal(report.arrays["w4a4/nvfp4_map"], 1)
    assert rows["w4a4"]["psnr_db"] < rows["w4a8"]["psnr_db"]
    assert rows["w4a4"]["network"] == "wan"
    assert rows["w4a4"]["scheduler"] == "FlowMatchEuler"
    assert rows["static"]["activation_bits"] == pytest.approx(6, abs=0.5)
    sites = {r["site"] for r in report.records() if r["kind"] == "correlation"}
    assert {"cross_in", "cross_out"} < sites


@pytest.mark.slow
def test_the_cache_holds_video_tokens_only(report):
    kind = ROWS["sixbit"][1]
    # 2 blocks, 2 branches, 2 x 8 x 8 tokens of 128 values in bf16
    assert report.study.cache_bytes(kind) == 2 * 2 * 128 * 128 * 2


def test_the_rows_of_the_command_exist():
    assert set(quality_wan.METHODS) <= set(ROWS)
