"""The DVD-Quant table on a tiny random model."""

import pytest

from benchmarks.quality import study as quality
from benchmarks.quality.calibrate import Targets
from benchmarks.quality.dvd_quant import run
from benchmarks.quality.dvd_quant_rows import COMPARISONS, ROWS
from benchmarks.quality.runs import Options
from sixbit_jax.benchmark import records
from sixbit_jax.routes import Route

METHODS = ("dvd_w4a6", "dvd_w4a4", "dvd_w4a8", "dvd_low_high", "dvd_random", "arq_w4a4")


@pytest.fixture(scope="module")
def table():
    return run(
        quality.random_model(num_layers=2, num_attention_heads=2),
        methods=METHODS,
        captions=2,
        calibration_captions=2,
        options=Options(num_steps=6, batch=4, dtype="float32"),
        targets=Targets(points=2),
        latent_shape=(2, 3, 32, 32),
    )


@pytest.fixture(scope="module")
def rows(table):
    return {row["method"]: row for row in table.records() if row["kind"] == "quality"}


def test_bits_are_those_of_the_schedules(rows):
    assert rows["dvd_w4a4"]["activation_bits"] == pytest.approx(4)
    assert rows["dvd_w4a8"]["activation_bits"] == pytest.approx(8)
    for name in ("dvd_low_high", "dvd_random"):
        assert rows[name]["activation_bits"] == pytest.approx(6)
    assert 4 < rows["dvd_w4a6"]["activation_bits"] < 8
    assert rows["dvd_w4a6"]["delta"] > 0


def test_more_bits_are_nearer_to_full_precision(rows):
    assert rows["dvd_w4a4"]["psnr_db"] < rows["dvd_w4a8"]["psnr_db"]
    assert rows["full_precision"]["latent_rel_l2"] == 0


def test_weights_of_one_structure_share_a_program(table):
    compiled = {row.kind: table.study.compiled(row.kind) for row in _used()}
    assert len(compiled) == 2
    assert len({id(program) for program in compiled.values()}) == 1
    # and are other weights all the same
    assert table.measured["arq_w4a4"].values["latent_rel_l2"].tolist() != (
        table.measured["dvd_w4a4"].values["latent_rel_l2"].tolist()
    )


def _used():
    return [ROWS[name] for name in METHODS]


def test_weights_are_stored_in_about_four_bits(rows):
    assert 4.0 < rows["dvd_w4a4"]["weight_bits"] < 5.5


def test_table_and_file_hold_every_row(table, tmp_path):
    table.write(tmp_path / "dvd.json", records.header(["x"], commit_id="c"))
    content = records.read(tmp_path / "dvd.json")["records"]
    compared = {(r["method"], r["against"]) for r in content if r["kind"] != "quality"}
    assert compared == {
        ("dvd_w4a4", "arq_w4a4"),
        ("dvd_w4a6", "dvd_low_high"),
        ("dvd_w4a6", "dvd_random"),
        ("dvd_w4a6", "dvd_w4a4"),
        ("dvd_w4a8", "dvd_w4a6"),
    }
    text = (tmp_path / "dvd.md").read_text()
    assert all(f"| {name} |" in text for name in ("full_precision", *METHODS))


def test_every_compared_row_exists_and_every_route_can_run():
    names = {name for pair in COMPARISONS for name in pair}
    assert names <= ROWS.keys()
    for row in ROWS.values():
        needed = {"low": {row.low}, "high": {row.high}, "bf16": {Route.BF16}}
        used = needed.get(row.schedule, {row.low, row.high})
        assert used <= set(row.kind.routes), row


def test_an_unknown_row_is_refused():
    with pytest.raises(ValueError, match=r"methods: expected .*found \['x'\]"):
        run(
            None,
            methods=["x"],
            captions=1,
            calibration_captions=1,
            options=Options(),
            targets=Targets(),
        )
