"""Directories of reports: replaced whole, and only where nothing else is in them."""

import errno
import os

import pytest

from sixbit_jax import checksums, files
from sixbit_jax.files import DestinationError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def report(path, **contents):
    """Writes a report of small files."""
    with files.replaced_directory(path, "report") as made:
        for name, text in contents.items():
            (made / name).write_text(text)


def test_a_report_replaces_an_earlier_one(tmp_path):
    report(tmp_path / "deep" / "r", old="1")
    report(tmp_path / "deep" / "r", new="2")
    assert names(tmp_path / "deep" / "r") == ["new", checksums.MANIFEST]
    assert names(tmp_path / "deep") == ["r"]


def test_a_failed_report_leaves_the_earlier_one(tmp_path):
    report(tmp_path / "r", old="1")
    with (
        pytest.raises(OSError, match="No space"),
        files.replaced_directory(tmp_path / "r", "report"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "r" / "old").read_text() == "1"
    assert names(tmp_path) == ["r"]


def add_a_file(path):
    (path / "thesis.txt").write_text("precious")
    return "thesis.txt"


def add_a_folder(path):
    (path / "deep").mkdir()
    (path / "deep" / "thesis.txt").write_text("precious")
    return r"deep/thesis\.txt"


def change_a_file(path):
    (path / "old").write_text("my notes")
    return r"old \(changed\)"


def put_a_link(path):
    (path / "old").unlink()
    (path / "old").symlink_to(path.parent)
    return r"old \(changed\)"


def lose_the_list(path):
    (path / checksums.MANIFEST).unlink()
    (path / "report.json").write_text("{}")
    return r"found .* with old, report\.json"


def damage_the_list(path):
    file = path / checksums.MANIFEST
    file.write_text(file.read_text().replace("old", "odd"))
    return "a damaged or another file"


@pytest.mark.parametrize(
    "harm",
    [
        add_a_file,
        add_a_folder,
        change_a_file,
        put_a_link,
        lose_the_list,
        damage_the_list,
    ],
)
def test_a_report_with_anything_else_in_it_is_never_replaced(tmp_path, harm):
    path = tmp_path / "r"
    report(path, old="1")
    message = harm(path)
    before = {p: p.is_file() and p.read_bytes() for p in path.rglob("*")}
    with (
        pytest.raises(DestinationError, match=message),
        files.replaced_directory(path, "report"),
    ):
        pytest.fail("the body ran")
    assert {p: p.is_file() and p.read_bytes() for p in path.rglob("*")} == before


def test_what_was_put_into_a_report_during_the_work_stays(tmp_path):
    report(tmp_path / "r", old="1")
    with (
        pytest.raises(DestinationError, match=r"thesis\.txt"),
        files.replaced_directory(tmp_path / "r", "report"),
    ):
        add_a_file(tmp_path / "r")
    assert names(tmp_path / "r") == ["old", checksums.MANIFEST, "thesis.txt"]
    assert names(tmp_path) == ["r"]


def test_a_directory_of_another_kind_is_never_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    checksums.write_manifest(tmp_path / "a", checksums.DIFFUSERS)
    with (
        pytest.raises(DestinationError, match="expected a report, found a diffusers"),
        files.replaced_directory(tmp_path / "a", "report"),
    ):
        pytest.fail("the body ran")
    assert (tmp_path / "a" / "x").read_text() == "1"


@pytest.mark.parametrize("make", ["touch", "fifo", "link"])
def test_a_report_replaces_directories_only(tmp_path, make):
    path = tmp_path / "a"
    report(tmp_path / "real", old="1")
    if make == "fifo":
        os.mkfifo(path)
    elif make == "link":
        path.symlink_to(tmp_path / "real")
    else:
        path.touch()
    with (
        pytest.raises(DestinationError, match="expected a new directory"),
        files.replaced_directory(path, "report"),
    ):
        pytest.fail("the body ran")
    assert names(tmp_path) == ["a", "real"]


def test_an_empty_directory_may_become_a_report(tmp_path):
    (tmp_path / "r").mkdir()
    report(tmp_path / "r", new="2")
    assert (tmp_path / "r" / "new").read_text() == "2"


def test_a_run_killed_between_two_renames_loses_nothing(tmp_path):
    report(tmp_path / "r", old="1")
    (tmp_path / "r").rename(tmp_path / ".r.replaced-0123456789abcdef")
    with (
        pytest.raises(KeyboardInterrupt),
        files.replaced_directory(tmp_path / "r", "report"),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / "r" / "old").read_text() == "1"
    assert names(tmp_path) == ["r"]
