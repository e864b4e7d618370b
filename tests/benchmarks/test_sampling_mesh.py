"""The benchmark of several devices at a tiny size, and the predictions for many."""

import json

import pytest

from benchmarks.sampling import mesh, scaling
from tests.sixbit_jax.models.small import small_config


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (2, ["one", "guidance=2", "fsdp=2", "one", "sequence=2"]),
        (
            8,
            [
                "one",
                "guidance=2,sequence=4",
                "guidance=2,fsdp=4",
                "one",
                "sequence=8",
            ],
        ),
    ],
)
def test_every_axis_is_compared_with_the_same_work_on_one_device(devices, names):
    found = mesh.cases("5b", devices)
    assert [mesh.shown(case.mesh) or mesh.ONE for case in found] == names
    assert [case.guided for case in found] == [True, True, True, False, False]
    assert [mesh.Case.parse(case.name) for case in found] == found


def test_efficiency_is_of_the_same_work():
    def record(name, guided, step, weights=8):
        sizes = dict(part.split("=") for part in name.split(","))
        devices = 1
        for size in sizes.values():
            devices *= int(size)
        return {
            "model": "5b",
            "frames": 13,
            "height": 60,
            "width": 90,
            "guided": guided,
            "skip_fraction": 0.0,
            "mesh": name,
            "devices": devices,
            "step_ms": step,
            "weight_bytes": weights,
        }

    found = [
        record("guidance=1,sequence=1", True, 100.0),
        record("guidance=2", True, 50.0),
        record("fsdp=2", True, 62.5, 4),
        record("guidance=1,sequence=1", False, 50.0),
        record("sequence=2", False, 27.0),
        {"failure": "none"},
    ]
    mesh.with_efficiency(found)
    assert found[1]["efficiency"] == 1.0
    assert found[2]["speed_of_guidance"] == 0.8
    assert found[2]["weights_of_guidance"] == 0.5
    assert found[4]["efficiency"] == pytest.approx(50 / 54)


def test_runs_at_a_tiny_size(tmp_path):
    config = tmp_path / "tiny.json"
    values = small_config(num_layers=2).to_dict()
    values["_class_name"] = "CogVideoXTransformer3DModel"
    config.write_text(json.dumps(values))
    out = tmp_path / "records.json"
    command = [
        "--model",
        str(config),
        "--steps",
        "3",
        "--mesh",
        "guidance=2,sequence=2",
    ]
    assert mesh.main([*command, "--out", str(out), "--commit", "none"]) == 0
    records = json.loads(out.read_text())["records"]
    assert [record["devices"] for record in records] == [1, 1, 4, 4]
    assert all(record["finite"] for record in records)
    assert [record["skipped"] for record in records] == [0.0, 0.5, 0.0, 0.5]
    assert all("efficiency" in record for record in records)
    # A step with skips is a difference of two times, which are short here.
    assert all(record["efficiency"] > 0 for record in records[::2])


def test_predictions_start_at_one_and_fall():
    found = scaling.rates()
    rows = list(scaling.predictions(found))
    for work in scaling.NETWORKS:
        own = [row for row in rows if row["model"] == work.name]
        efficiencies = [row["efficiency"] for row in own]
        assert efficiencies[0] == 1.0
        assert efficiencies == sorted(efficiencies, reverse=True)
        assert own[-1]["step_ms"] < own[0]["step_ms"]


def test_one_device_is_predicted_as_it_was_measured():
    records = json.loads((scaling.RESULTS / scaling.PARTS_OF).read_text())["records"]
    (measured,) = (
        record["step_ms"]
        for record in records
        if record.get("program") == mesh.PROGRAM and not record["skip_fraction"]
    )
    predicted = 1e3 * scaling.step_seconds(scaling.NETWORKS[0], 1, 1, scaling.rates())
    assert predicted == pytest.approx(measured, rel=0.05)


def test_measured_and_predicted_stand_side_by_side():
    record = {
        "model": "5b",
        "mesh": "guidance=2",
        "devices": 2,
        "guided": True,
        "skip_fraction": 0.0,
        "step_ms": 410.0,
        "efficiency": 0.98,
    }
    (line,) = scaling.compared([record, {"failure": "none"}], scaling.rates())
    assert line.startswith(
        "CogVideoX-5b guidance=2: measured 410 ms (efficiency 0.980)"
    )
