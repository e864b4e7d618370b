"""Properties of the quality harness on a tiny random model."""

import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from benchmarks.quality import report as quality_report
from benchmarks.quality import study as quality
from benchmarks.quality.calibrate import (
    Targets,
)
from benchmarks.quality.policies import Setting
from benchmarks.quality.runs import QUANTIZED, Options, make_task
from sixbit_jax.benchmark import records
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.policies import chain, dmpq, pdr, tdc

pytestmark = pytest.mark.slow

FRAMES = (2, 3, 32, 32)
METHODS = ("w4a8", "w4a4", "alternate_steps", "random", "static", "sixbit")
RELIED_ON = {
    "method",
    "seeds",
    "captions",
    "psnr_db",
    "psnr_ci95",
    "ssim",
    "latent_rel_l2",
    "attribute_score",
    "temporal_consistency",
    "activation_bits",
    "effective_bits",
    "weight_bits",
    "skip_fraction",
}


@pytest.fixture(scope="module")
def model():
    return quality.random_model(num_layers=2, num_attention_heads=2)


@pytest.fixture(scope="module")
def report(model):
    return quality.run(
        model,
        methods=METHODS,
        captions=2,
        seeds=[1],
        calibration_captions=2,
        options=Options(num_steps=4, batch=6, dtype="float32"),
        targets=Targets(points=3),
        latent_shape=FRAMES,
    )


@pytest.fixture(scope="module")
def rows(report):
    return {r["method"]: r for r in report.records() if r["kind"] == "quality"}


def test_full_precision_does_not_drift_and_has_no_psnr(rows):
    row = rows["full_precision"]
    assert row["latent_rel_l2"] == 0
    assert row["ssim"] == pytest.approx(1, abs=1e-6)
    assert row["psnr_db"] is None
    assert row["psnr_ci95"] is None


def test_more_activation_bits_are_nearer_to_full_precision(rows):
    assert rows["w4a4"]["psnr_db"] < rows["w4a8"]["psnr_db"]
    assert rows["w4a4"]["latent_rel_l2"] > rows["w4a8"]["latent_rel_l2"] > 0


def test_bits_are_those_of_the_routes(rows):
    expected = {"full_precision": 16, "w4a8": 8, "w4a4": 4, "alternate_steps": 6}
    for name, bits in expected.items():
        assert rows[name]["activation_bits"] == pytest.approx(bits)
        assert rows[name]["effective_bits"] == pytest.approx(bits)
        assert rows[name]["skip_fraction"] == 0
    assert rows["static"]["activation_bits"] == pytest.approx(6, abs=0.3)
    assert rows["random"]["activation_bits"] == pytest.approx(6, abs=0.3)


def test_skips_lower_effective_bits_and_cost_a_cache(rows):
    row = rows["sixbit"]
    assert row["skip_fraction"] > 0
    assert row["effective_bits"] == pytest.approx(
        row["activation_bits"] * (1 - row["skip_fraction"]), rel=1e-6
    )
    # 2 blocks, 2 branches, 144 tokens of 128 values in bf16
    assert row["cache_bytes"] == 2 * 2 * 144 * 128 * 2
    assert rows["w4a8"]["cache_bytes"] == 0


def test_weights_of_methods_are_smaller(rows):
    assert rows["full_precision"]["weight_bits"] == 16
    assert 4.5 < rows["w4a8"]["weight_bits"] < 5.5


def test_records_have_every_field_that_readers_rely_on(report, tmp_path):
    path = tmp_path / "quality.json"
    arrays = tmp_path / "quality.npz"
    report.write(path, records.header(["x"], commit_id="c"), arrays)
    content = records.read(path)["records"]
    for row in content:
        if row["kind"] == "quality":
            assert set(row) >= RELIED_ON
    kinds = {row["kind"] for row in content}
    assert kinds == {"quality", "comparison", "correlation"}
    table = path.with_suffix(".md").read_text()
    assert all(f"| {name} |" in table for name in ("full_precision", *METHODS))
    stored = np.load(arrays)
    assert stored["w4a8/psnr_db"].shape == (2,)
    assert stored["sixbit/skip_map"].shape == (4, 2, 2)
    assert stored["record_error"].shape == (2, 4, 2, 2, 4)


def test_plots_are_written(report, tmp_path):
    made = quality_report.plot(report.records(), tmp_path)
    assert {p.name for p in made} >= {"psnr_quantized.png"}
    assert all(p.stat().st_size > 5000 for p in made)


def test_policy_file_of_the_default_fits_the_model(report, model, rows):
    policy = report.default_policy()
    policy.check_fits(model)
    assert policy.tau == rows["sixbit"]["tau"]
    assert policy.threshold == rows["sixbit"]["threshold"]


def test_one_structure_gives_what_the_policy_alone_gives(report, model):
    """The superset program under vmap, against the sampler with the plain chain."""
    study, tuned = report.study, report.calibrated
    setting = Setting(
        predictor=tuned.predictor,
        threshold=float(np.median(tuned.recording.error)),
        tau=10.0,
        outlier_ratio=4.0,
        refresh_int8=True,
    )
    task = make_task(evaluation_attributes(2), [7], FRAMES)
    together = study.run(QUANTIZED, [setting], task)
    alone = sixbit_jax.sample(
        study.model(QUANTIZED),
        study.scheduler,
        sixbit_jax.Prompt(encode_captions(task.captions[1:]), encode_captions([""])),
        latent_shape=FRAMES,
        num_steps=4,
        noise=jnp.asarray(task.noise[1:]),
        policy=chain(
            dmpq(tuned.predictor, setting.threshold), tdc(setting.tau), pdr(4.0)
        ),
        execution=sixbit_jax.Execution(dtype=jnp.float32),
    )
    np.testing.assert_array_equal(together.trace.skip[1], alone.trace.skip)
    np.testing.assert_array_equal(together.trace.route[1], alone.trace.route)
    assert alone.trace.skip.any()
    np.testing.assert_allclose(together.latents[1], alone.latents[0], atol=2e-3)


def test_unknown_method_is_refused_before_anything_runs(model):
    with pytest.raises(ValueError, match=r"methods: expected .*; found \['w2a2'\]"):
        quality.run(
            model,
            methods=["w2a2"],
            captions=2,
            seeds=[1],
            calibration_captions=1,
            options=Options(),
            targets=Targets(),
        )
