import os
import stat
from pathlib import Path

import pytest

from sixbit_jax.commands._targets import check_targets
from sixbit_jax.files import DestinationError


def refused(targets, inputs=()):
    with pytest.raises(DestinationError) as error:
        check_targets(targets, inputs=inputs)
    return str(error.value)


def test_new_files_and_earlier_ones_are_fine(tmp_path):
    (tmp_path / "a").write_text("old")
    targets = {"--out": tmp_path / "a", "--trace": tmp_path / "b", "--plot": None}
    check_targets(targets, inputs=(tmp_path / "c", None))
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("name", ["fifo", "link", "dangling", "folder"])
def test_only_files_are_targets(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    kinds = {"fifo": "a FIFO", "folder": "a directory"}
    message = refused({"--trace": tmp_path / name})
    assert message.startswith(f"--trace {tmp_path / name}: expected a new file")
    assert message.endswith("found " + kinds.get(name, "a symbolic link"))


def test_a_device_is_no_target(tmp_path, monkeypatch):
    device = os.stat_result([stat.S_IFCHR | 0o666, *[0] * 9])
    monkeypatch.setattr(Path, "lstat", lambda self: device)
    assert "found a character device" in refused({"--out": tmp_path / "a"})


def test_all_problems_are_told_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    message = refused(
        {
            "--out": tmp_path / "none" / "a",
            "--trace": tmp_path / "folder",
            "--plot": Path(),
        }
    )
    assert "--out" in message
    assert "expected an existing directory" in message
    assert "--trace" in message
    assert "--plot: expected the name of a file" in message


def test_two_options_never_name_one_file(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    same = {"--out": tmp_path / "d" / "a", "--trace": tmp_path / "link" / "a"}
    assert "expected another file than --out, found the same" in refused(same)


def test_what_is_read_is_never_written_to(tmp_path):
    (tmp_path / "prompts").write_text("1")
    (tmp_path / "model" / "rest").mkdir(parents=True)
    (tmp_path / "model" / "sixbit.json").write_text("{}")
    inputs = (tmp_path / "prompts", tmp_path / "model")
    for target in ("prompts", "model/sixbit.json", "model/rest/new"):
        message = refused({"--out": tmp_path / target}, inputs)
        assert str(inputs[target != "prompts"]) in message
    check_targets({"--out": tmp_path / "model" / "new"}, inputs=inputs)


def test_a_name_that_is_no_text_can_be_told(tmp_path):
    path = tmp_path / os.fsdecode(b"no\xff") / "a"
    message = refused({"--out": path})
    assert "no\\xff/a" in message
    message.encode()
