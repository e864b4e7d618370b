"""The results file: header, one piece, no numbers that JSON lacks."""

import json

import pytest

from sixbit_jax.benchmark import records


def test_header_has_the_fields_that_readers_rely_on():
    head = records.header(["python", "-m", "x", "a b"], commit_id="abc")
    assert list(head) == ["command", "date", "commit", "machine", "versions"]
    assert head["command"] == "python -m x 'a b'"
    assert head["commit"] == "abc"
    assert head["machine"]
    assert {"python", "jax", "numpy"} <= set(head["versions"])


def test_packages_that_are_not_installed_are_left_out():
    head = records.header([], commit_id="", machine_name="m", packages=["no-such"])
    assert list(head["versions"]) == ["python"]


def test_infinite_numbers_become_null_at_any_depth(tmp_path):
    path = tmp_path / "new" / "file.json"
    head = records.header([], commit_id="", machine_name="m")
    records.write(path, head, [{"a": float("inf"), "b": [float("nan"), 1.5], "c": 1}])
    assert records.read(path)["records"] == [{"a": None, "b": [None, 1.5], "c": 1}]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    head = records.header([], commit_id="", machine_name="m")
    records.write(path, head, [{"a": 1}])
    with pytest.raises(TypeError, match="not JSON serializable"):
        records.write(path, head, [{"a": object()}])
    assert records.read(path)["records"] == [{"a": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_file_without_header_is_refused_by_name(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"records": []}))
    with pytest.raises(ValueError, match=r"missing \['command', 'date'"):
        records.read(path)
