"""The MPQ-DMv2 table on a tiny random model: rows, errors, resuming."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import mpq_dm as quality_mpq_dm
from benchmarks.quality.mpq_dm_rows import Settings, names_of
from benchmarks.quality.study import random_model
from sixbit_jax.benchmark import records

pytestmark = pytest.mark.slow

SETTINGS = Settings(
    captions=2,
    tune_captions=2,
    iterations=4,
    sweep_iterations=2,
    batch=2,
    steps=2,
    dtype="float32",
    iterations_per_call=2,
    frames=2,
    rank=2,
    capacity=8,
    draws=16,
    levels_rate=1e-5,
    adapter_rate=1e-4,
    mtrd_weight=0.1,
    calibration=32,
)
ONLY = ["w3a6", "uniform", "rmq", "rmq_svd", "rmq_svd_inside", "all"]


@pytest.fixture(scope="module")
def model():
    return random_model(num_layers=2, num_attention_heads=2, patch_size=8)


@pytest.fixture(scope="module")
def found(model):
    written = []
    content = quality_mpq_dm.run(
        model, SETTINGS, only=ONLY, after_row=lambda rows: written.append(len(rows))
    )
    assert all(np.diff(written) > 0)
    return content


def test_rows_have_true_bits_and_all_numbers(found, tmp_path):
    rows = {r["variant"]: r for r in found if r["kind"] == "quality"}
    assert set(rows) == set(ONLY) - {"w3a6"}
    for row in rows.values():
        assert (row["linear_weight_bits"], row["activation_bits"]) == (3, 6)
        assert np.isfinite(row["psnr_db"])
    assert rows["uniform"]["weight_bytes"] < rows["rmq"]["weight_bytes"]
    assert rows["rmq"]["weight_bytes"] < rows["all"]["weight_bytes"]
    assert rows["rmq"]["iterations"] == 0
    assert rows["all"]["iterations"] == 4
    assert rows["all"]["held_out_mse"] > 0
    path = tmp_path / "mpq_dm.json"
    records.write(path, records.header(["x"], commit_id="c"), found)
    assert records.read(path)["records"][0]["kind"] == "settings"


def test_errors_are_ordered_as_the_parts_promise(found):
    errors = {r["method"]: r for r in found if r["kind"] == "error"}
    assert set(errors) == {"uniform", "rmq", "rmq_svd", "rmq_svd_inside"}
    weight = {name: row["weight_error"] for name, row in errors.items()}
    output = {name: row["output_error"] for name, row in errors.items()}
    assert weight["rmq_svd"] < weight["rmq"]
    assert weight["rmq_svd"] < weight["rmq_svd_inside"]
    assert output["rmq"] < output["uniform"]
    assert errors["uniform"]["mean_salient_share"] == 0
    assert "| rmq | 3 |" in quality_mpq_dm.error_table(found)


def test_sweeps_try_what_is_not_given(found):
    swept = {r["of"] for r in found if r["kind"] == "sweep"}
    assert swept == {"temperature"}
    chosen = found[0]["numbers"]
    tried = {r["temperature"]: r["mse"] for r in found if r["kind"] == "sweep"}
    assert tried[chosen["temperature"]] == min(tried.values())


def test_finished_rows_are_not_made_again_and_time_ends_the_run(model, found):
    done = [r for r in found if r["kind"] != "comparison"]
    again = quality_mpq_dm.run(
        model, SETTINGS, only=["w3a6", "rmq", "greedy"], done=done, minutes=0.0
    )
    assert [r for r in again if r["kind"] != "comparison"] == done


def test_other_settings_and_unknown_rows_are_refused(model, found):
    with pytest.raises(ValueError, match=r"--only: expected some of .*'w2a2'"):
        names_of(["w2a2"])
    with pytest.raises(ValueError, match="an earlier run of other settings"):
        quality_mpq_dm.run(model, replace(SETTINGS, batch=3), done=found, only=ONLY)


def test_q_vdit_has_no_row_below_three_bits():
    rows = names_of(["q_vdit", "all"])
    assert ("w3a6", "q_vdit") in rows
    assert ("w2a6", "q_vdit") not in rows
    assert ("w2a6", "all") in rows
