"""The Q-VDiT table on a tiny random model: rows, resuming, time limit."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import q_vdit as quality_q_vdit
from benchmarks.quality.q_vdit_rows import Settings, names_of
from benchmarks.quality.runner import earlier_records, tuned_markdown
from benchmarks.quality.study import random_model
from sixbit_jax.benchmark import records

pytestmark = pytest.mark.slow

SETTINGS = Settings(
    captions=2,
    tune_captions=2,
    iterations=4,
    batch=2,
    inner_rank=2,
    steps=2,
    dtype="float32",
    iterations_per_call=2,
    rates=(1e-5, 1e-3, 1e-3, 1e-4),
    frames=2,
)
ONLY = ["w3a6", "w3a8", "all_linears", "rtn", "range", "all_inner"]


@pytest.fixture(scope="module")
def model():
    return random_model(num_layers=2, num_attention_heads=2, patch_size=8)


@pytest.fixture(scope="module")
def found(model):
    written = []
    content = quality_q_vdit.run(
        model, SETTINGS, only=ONLY, after_row=lambda rows: written.append(len(rows))
    )
    # One file per row, each longer than the one before.
    assert len(written) == 6
    assert all(np.diff(written) > 0)
    return content


def test_rows_have_true_bits_and_all_numbers(found, tmp_path):
    rows = {r["method"]: r for r in found if r["kind"] == "quality"}
    assert set(rows) == {
        f"w3a{a}/all_linears/{v}" for a in (6, 8) for v in ("rtn", "range", "all_inner")
    }
    for name, row in rows.items():
        assert row["linear_weight_bits"] == 3
        assert row["activation_bits"] == int(name[3])
        assert 3 < row["weight_bits"] < 16
        assert np.isfinite(row["psnr_db"])
        assert row["held_out_mse"] > 0
    assert rows["w3a6/all_linears/range"]["iterations"] == 0
    tuned = rows["w3a6/all_linears/all_inner"]
    assert tuned["iterations"] == 4
    assert tuned["learning_rates"]["inner"] == 1e-4
    path = tmp_path / "q_vdit.json"
    records.write(path, records.header(["x"], commit_id="c"), found)
    assert records.read(path)["records"][0]["kind"] == "settings"
    assert "| w3a8/all_linears/all_inner | 3.00 | 8.00 |" in (tuned_markdown(found))


def test_neighbouring_variants_are_compared_in_pairs(found):
    pairs = {(r["method"], r["against"]) for r in found if r["kind"] == "comparison"}
    assert pairs == {
        (f"w3a{a}/all_linears/range", f"w3a{a}/all_linears/rtn") for a in (6, 8)
    }


def test_finished_rows_are_not_made_again_and_time_ends_the_run(model, found):
    again = quality_q_vdit.run(
        model,
        SETTINGS,
        only=["w3a6", "all_linears", "range", "tmd"],
        done=found,
        minutes=0.0,
    )
    # Nothing was measured, so the comparisons are the earlier ones, once.
    for kind in ("quality", "comparison"):
        kept = [r for r in again if r["kind"] == kind]
        assert kept == [r for r in found if r["kind"] == kind]


def test_a_file_is_continued_and_never_overwritten(found, tmp_path):
    out, path = tmp_path / "out.json", tmp_path / "earlier.json"
    records.write(path, records.header(["x"], commit_id="c"), found)
    kept = earlier_records(out, path)
    kinds = ["settings", *["quality"] * 6, *["comparison"] * 2]
    assert [r["kind"] for r in kept] == kinds
    assert earlier_records(path, Path()) == kept
    assert earlier_records(out, Path()) == []
    with pytest.raises(FileExistsError, match="expected a new file, or --resume"):
        earlier_records(path, None)
    with pytest.raises(FileNotFoundError, match="--resume: expected a results file"):
        earlier_records(path, out)


def test_other_settings_and_unknown_rows_are_refused(model, found):
    with pytest.raises(ValueError, match=r"--only: expected some of .*'w2a2'"):
        names_of(["w2a2"])
    other = [{**found[0], "settings": {**found[0]["settings"], "batch": 3}}]
    with pytest.raises(ValueError, match="an earlier run of other settings"):
        quality_q_vdit.run(model, SETTINGS, done=other, only=ONLY)
