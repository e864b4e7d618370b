import json
from dataclasses import replace

import numpy as np
import pytest

from sixbit_jax.policies import BlockGrid, chain
from sixbit_jax.report.comparison import Comparison, frame_psnr, quality, table_rows
from sixbit_jax.report.runs import Configuration, Run
from sixbit_jax.report.write import slug, slugs, write_report
from sixbit_jax.routes import Route
from tests.sixbit_jax.report.traces import SITES, make_trace

GRID = BlockGrid(3, SITES, np.ones((3, 4)))


def make_run(name, latents, **trace):
    return Run(
        configuration=Configuration(name, None, chain(), description=f"{name}!"),
        grid=GRID,
        latents=latents,
        traces=tuple(make_trace(seed=i, **trace) for i in range(len(latents))),
        seconds=(2.0,) * len(latents),
        compile_seconds=1.0,
        weight_bytes=1000,
        cache_bytes=0,
        temporary_bytes=10,
    )


def noise(seed=0, channels=3):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (2, 4, channels, 16, 16)).astype(np.float32)


@pytest.fixture
def comparison():
    clean = noise()
    full = make_run("full precision", clean, route=Route.BF16, skip_step=None)
    low = make_run("6-bit", clean + 0.1 * noise(1), route=Route.NVFP4)
    return Comparison(("one", "two"), (full, low))


def test_quality_is_measured_per_prompt_against_the_reference(comparison):
    full, low = comparison.runs
    merit = quality(low, full)
    error = np.clip(low.latents, -1, 1) - full.latents
    psnr = 10 * np.log10(4 / np.square(error).mean((1, 2, 3, 4)))
    np.testing.assert_allclose(merit["psnr_db"], psnr, rtol=1e-5)
    drift = np.linalg.norm((low.latents - full.latents).reshape(2, -1), axis=1)
    drift /= np.linalg.norm(full.latents.reshape(2, -1), axis=1)
    np.testing.assert_allclose(merit["latent_rel_l2"], drift, rtol=1e-5)
    assert 0 < merit["ssim"][0] < 1


def test_frames_of_equal_videos_have_infinite_psnr(comparison):
    full, low = comparison.runs
    assert np.isposinf(frame_psnr(full, full)).all()
    assert frame_psnr(low, full).shape == (2, 4)
    assert np.isfinite(frame_psnr(low, full)).all()


def test_latents_that_are_not_pixels_have_drift_only():
    full = make_run("a", noise(channels=4))
    low = make_run("b", noise(1, channels=4))
    assert quality(low, full).keys() == {"latent_rel_l2"}


def test_records_carry_costs_of_the_trace(comparison):
    full, low = comparison.records
    assert (full["activation_bits"], full["skip_fraction"]) == (16.0, 0.0)
    assert low["activation_bits"] == 4.0
    # One of 3 blocks in one of 6 steps.
    assert low["skip_fraction"] == pytest.approx(1 / 18)
    assert low["effective_bits"] == pytest.approx(4 * 17 / 18)
    assert "psnr_db" not in full


def test_table_leaves_out_rows_that_nobody_has(comparison):
    columns, rows = table_rows(comparison)
    assert columns == ["", "full precision", "6-bit"]
    names = [row[0] for row in rows]
    assert "attributes right" not in names
    assert rows[names.index("PSNR to the reference")][1] == "–"
    scored = replace(comparison, scores=({"attribute_score": 1.0},) * 2)
    assert table_rows(scored)[1][0] == ["attributes right", "100 %", "100 %"]


def test_report_names_every_file_it_wrote_and_nothing_else(comparison, tmp_path):
    names = write_report(tmp_path, comparison, title="T", facts={"steps": 6})
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 6
    assert [r["method"] for r in report["records"]] == ["full precision", "6-bit"]
    with np.load(tmp_path / "traces_6-bit.npz") as traces:
        assert traces["route"].shape == (2, 6, 2, 3, 4)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/gif") == 1
    # Full precision decides nothing, so it has no route map.
    assert {n for n in names if n.startswith("routes")} == {
        "routes_1_6-bit.png",
        "routes_2_6-bit.png",
    }


def test_equal_runs_make_a_report_that_is_valid_json(comparison, tmp_path):
    full = comparison.reference
    same = replace(comparison, runs=(full, full))
    write_report(tmp_path, same, title="T", facts={})
    text = (tmp_path / "report.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["records"][1]["psnr_db"] is None


def test_latents_without_pixels_make_a_report_without_videos(tmp_path):
    runs = (make_run("a", noise(channels=4)), make_run("b", noise(1, channels=4)))
    names = write_report(tmp_path, Comparison(("p", "q"), runs), title="T", facts={})
    assert not [name for name in names if name.endswith((".gif", ".mp4"))]
    assert "routes_1_a.png" in names


def test_slugs_are_file_names():
    assert slug("W4A8 / full precision!") == "w4a8-full-precision"
    assert slug("–") == "run"


def test_rare_routes_have_a_row_only_where_one_ran():
    clean = noise(0)
    plain = make_run("full precision", clean, route=Route.BF16, skip_step=None)
    arq = make_run("dvd", clean, route=Route.ARQ4)
    names = [row[0] for row in table_rows(Comparison(("a", "b"), (plain, arq)))[1]]
    assert "of what ran in ARQ4" in names
    assert "of what ran in INT6" not in names
    assert "of what ran in NVFP4" in names


def test_the_share_of_int8_scores_is_that_of_computed_blocks(comparison):
    full, low = comparison.runs
    assert all("attention scores" not in row[0] for row in table_rows(comparison)[1])
    eight = [trace._replace(int8_scores=~trace.skip) for trace in low.traces]
    # One computed block of 3 x 2 x 6 in the first trace, less the skipped ones.
    eight[0].int8_scores[0, 0, 0] = False
    changed = Comparison(comparison.prompts, (full, replace(low, traces=tuple(eight))))
    share = changed.records[1]["share_int8_scores"]
    computed = sum(int((~trace.skip).sum()) for trace in low.traces)
    assert share == pytest.approx(1 - 1 / computed)
    (row,) = (row for row in table_rows(changed)[1] if "attention scores" in row[0])
    assert row[1:] == ["0.0 %", f"{100 * share:.1f} %"]


def test_sparse_attention_has_a_row_and_heat_maps(comparison, tmp_path):
    full, low = comparison.runs
    assert all("blocks of keys" not in row[0] for row in table_rows(comparison)[1])
    sparse = tuple(
        trace._replace(attention_density=np.where(trace.skip, 0.0, 0.5))
        for trace in low.traces
    )
    changed = Comparison(comparison.prompts, (full, replace(low, traces=sparse)))
    (row,) = (row for row in table_rows(changed)[1] if "blocks of keys" in row[0])
    assert row[1:] == ["100.0 %", "50.0 %"]
    for name, found, maps in (("sparse", changed, 2), ("dense", comparison, 0)):
        (tmp_path / name).mkdir()
        written = write_report(tmp_path / name, found, title="t", facts={})
        assert len([part for part in written if part.startswith("density_")]) == maps


def test_runs_of_one_name_write_files_of_their_own(comparison, tmp_path):
    first, second = comparison.runs
    names = ("policy", "Policy")
    runs = tuple(
        replace(run, configuration=replace(run.configuration, name=name))
        for run, name in zip((first, second), names, strict=True)
    )
    written = write_report(
        tmp_path, replace(comparison, runs=runs), title="t", facts={}
    )
    assert len(set(written)) == len(written)
    assert {"traces_policy.npz", "traces_policy-2.npz"} <= set(written)
    for run, name in zip(runs, ("policy", "policy-2"), strict=True):
        with np.load(tmp_path / f"traces_{name}.npz") as found:
            np.testing.assert_array_equal(found["gamma"][0], run.traces[0].gamma)


def test_slugs_are_distinct_and_short():
    assert slugs(["a b", "a-b", "A B", "a-b-2"]) == ["a-b", "a-b-2", "a-b-3", "a-b-2-2"]
    assert slugs(["модель", "другая"]) == ["run", "run-2"]
    assert len(slug("x" * 300)) == 100
