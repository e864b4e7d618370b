"""`calibrate` on a tiny checkpoint, and its policy in `sample` and `compare`."""

import json

import numpy as np
import pytest

from sixbit_jax import cli
from sixbit_jax.measured import NOT_MEASURED
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("calibrate") / "source")


@pytest.fixture(scope="module")
def calibrated(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    argv = ["calibrate", f"--model={source}", f"--out={folder / 'policy.json'}"]
    argv += [f"--plot={folder / 'fit.png'}", "--prompts=2", "--search-prompts=1"]
    argv += ["--steps=10", "--guidance=1", "--quiet", "--skips=0.25"]
    assert cli.main(argv) == 0
    return folder


def test_the_policy_meets_its_targets_and_says_how_it_was_made(calibrated):
    policy = json.loads((calibrated / "policy.json").read_text())
    notes = policy["calibration"]
    assert notes["activation_bits"] == pytest.approx(6.0, abs=0.5)
    assert notes["skip_fraction"] == pytest.approx(0.25, abs=0.06)
    assert policy["tau"] > 0
    assert notes["recorded_runs"] == 2
    assert set(notes["sites"]) == set(policy["sites"])
    assert all(-1 <= site["pearson"] <= 1 for site in notes["sites"].values())
    assert (calibrated / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in calibrated.iterdir()) == ["fit.png", "policy.json"]


def test_compare_takes_the_policy(source, calibrated, tmp_path):
    out = tmp_path / "out"
    policy = calibrated / "policy.json"
    argv = ["compare", "full", str(policy), f"--model={source}", f"--out={out}"]
    argv += ["--steps=10", "--guidance=1", "--quiet", "--record-errors", "--captions"]
    assert cli.main([*argv, "a red circle grows on a black background"]) == 0
    low = json.loads((out / "report.json").read_text())["records"][1]
    assert low["method"] == "policy"
    assert 4.0 < low["activation_bits"] < 8.0
    assert 0 < low["skip_fraction"] < 0.5
    assert low["effective_bits"] < low["activation_bits"]
    with np.load(out / "traces_policy.npz") as traces:
        assert not traces["skip"][:, :2].any()
        assert not traces["skip"][:, -1].any()
        assert ((traces["error"] >= 0) == ~traces["skip"][..., None]).all()
    assert (out / "errors_policy.png").is_file()
    # Full precision has no NVFP4 error to measure.
    with np.load(out / "traces_full-precision.npz") as traces:
        assert (traces["error"] == NOT_MEASURED).all()


def test_blocks_and_branches_decide_together_and_stable_ones_get_8_bit_scores(
    source, tmp_path
):
    path, trace = tmp_path / "policy.json", tmp_path / "traces"
    argv = ["calibrate", f"--model={source}", f"--out={path}", "--prompts=1"]
    argv += ["--search-prompts=1", "--steps=8", "--quiet", "--skips=0.25"]
    argv += ["--together=all", "--shared", "--int8-attention=0.5"]
    assert cli.main(argv) == 0
    policy = json.loads(path.read_text())
    assert policy["together"] is None
    assert policy["shared"]
    argv = ["compare", "full", str(path), f"--model={source}", f"--out={trace}"]
    argv += ["--steps=8", "--quiet", "--captions"]
    assert cli.main([*argv, "a red circle grows on a black background"]) == 0
    with np.load(trace / "traces_policy.npz") as arrays:
        assert (arrays["skip"].all((2, 3)) == arrays["skip"].any((2, 3))).all()
        eight = arrays["int8_scores"]
        assert not eight[:, 0].any()
        assert 0 < eight.mean() < 1
        limit = policy["attention_max_gamma"]
        ran = ~arrays["skip"][:, :-1]
        low = arrays["gamma"][:, :-1] <= limit
        assert (eight[:, 1:] == low)[ran].all()


def test_attention_computes_the_share_of_the_keys(tmp_path, capsys):
    path, out = tmp_path / "policy.json", tmp_path / "out"
    # 848 tokens: 5 tiles of queries, 7 blocks of keys.
    source = write_tiny_checkpoint(tmp_path / "source", patch_size=4)
    argv = ["calibrate", f"--model={source}", f"--out={path}", "--prompts=1"]
    argv += ["--search-prompts=1", "--steps=5", "--quiet", "--skips=0.2"]
    argv += ["--attention-share=0.93"]
    assert cli.main(argv) == 0
    assert "(target 93.0 %)" in capsys.readouterr().out
    policy = json.loads(path.read_text())
    assert policy["sparse_way"] == "threshold"
    notes = policy["calibration"]
    assert notes["target_attention_share"] == 0.93
    assert notes["density"] == pytest.approx(0.93, abs=0.03)
    argv = ["compare", "full", str(path), f"--model={source}", f"--out={out}"]
    argv += ["--steps=5", "--quiet"]
    caption = "a red circle grows on a black background"
    assert cli.main([*argv, "--captions", caption]) == 0
    record = json.loads((out / "report.json").read_text())["records"][1]
    assert record["density"] == pytest.approx(0.93, abs=0.05)
    with np.load(out / "traces_policy.npz") as traces:
        density, skip = traces["attention_density"], traces["skip"]
    # The first fifth of the steps and the first block stay dense.
    assert (density[:, 0] == 1).all()
    assert (density[..., 0][~skip[..., 0]] == 1).all()
    assert density[:, 1:, :, 1][~skip[:, 1:, :, 1]].max() < 1
    assert (density[skip] == 0).all()


def test_a_policy_of_another_model_is_refused(calibrated, tmp_path, capsys):
    from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

    other = write_tiny_checkpoint(tmp_path / "other", num_layers=1)
    out = tmp_path / "out"
    argv = ["compare", "full", str(calibrated / "policy.json"), f"--model={other}"]
    assert cli.main([*argv, f"--out={out}", "--quiet"]) == cli.USER_ERROR
    assert "calibrated for another model" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--skips=1"], "--skips: expected 0 to 1"),
        (["--max-drift=0"], "--max-drift: expected more than 0"),
        (["--steps=1"], "--steps: expected at least 2"),
        (["--prompts=100000"], "--prompts: expected at most"),
        (["--int8-attention=0"], "--int8-attention: expected above 0 to 1"),
        (["--attention-share=0"], "--attention-share: expected above 0 to 1"),
        (
            ["--attention-share=0.5", "--recipe=dvd-quant"],
            "--attention-share: expected none with --recipe dvd-quant",
        ),
        (["--plot=absent/plot.png"], "expected an existing directory"),
    ],
)
def test_calibrate_refuses_wrong_options(source, tmp_path, options, message, capsys):
    argv = ["calibrate", f"--model={source}", f"--out={tmp_path / 'p.json'}"]
    assert cli.main([*argv, *options]) == cli.USER_ERROR
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_drift_below_what_quantization_alone_causes_is_refused(
    source, tmp_path, capsys
):
    argv = ["calibrate", f"--model={source}", f"--out={tmp_path / 'p.json'}"]
    argv += ["--prompts=1", "--search-prompts=1", "--steps=4", "--guidance=1"]
    assert cli.main([*argv, "--quiet", "--max-drift=1e-9"]) == cli.USER_ERROR
    assert "the drift without any skip" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_closed_threshold_counts_what_the_outlier_rule_put_into_bf16():
    from sixbit_jax.calibration.calibrate import closed_threshold
    from sixbit_jax.calibration.runs import Sampled
    from sixbit_jax.policies import BlockGrid, ErrorPredictor
    from sixbit_jax.routes import Route
    from tests.sixbit_jax.report.traces import SITES, make_trace

    trace = make_trace(steps=41, branches=1, blocks=1, skip_step=None)
    numbers = {
        "predictor": ErrorPredictor(SITES, np.ones((1, 4)), np.zeros((1, 4))),
        "residual": False,
        "final_int8": 0,
        "purify": True,
        "refresh_int8": True,
    }
    grid = BlockGrid(1, SITES, np.ones((1, 4)))

    def share_below(trace, **options):
        sampled = Sampled(None, (trace,))
        threshold = closed_threshold(sampled, numbers | options, grid, 6.0)
        return np.mean(trace.gamma[:-1] <= threshold)

    assert share_below(trace) == pytest.approx(0.5, abs=0.04)
    # One site in BF16: the three others have (3 * x + 16) / 4 = 6, x = 2.67 bits,
    # less than NVFP4 has.
    purified = trace.route.copy()
    purified[..., 0] = Route.BF16
    assert share_below(trace._replace(route=purified)) == 1.0
    # In one step of four: 1 + 3.75 / 4 * x = 6, x = 5.33 bits, a third in INT8.
    some = trace.route.copy()
    some[::4, ..., 0] = Route.BF16
    below = share_below(trace._replace(route=some))
    assert below == pytest.approx(2 / 3, abs=0.05)
    # The last 10 of 41 steps in INT8: 20.5 of the first 31 remain for NVFP4.
    assert share_below(trace, final_int8=10) == pytest.approx(2 / 3, abs=0.1)
