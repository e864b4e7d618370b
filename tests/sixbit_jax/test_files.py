"""What appears, what stays, and what is removed when runs fail, race or are killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sixbit_jax import files, locks
from sixbit_jax.files import DestinationError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def report(path, **contents):
    """Writes a report of small files."""
    with files.replaced_directory(path, "report") as made:
        for name, text in contents.items():
            (made / name).write_text(text)


# A process that begins to write, says so, and then waits for ever.
WAITING = """
import sys, time
from sixbit_jax import files
with getattr(files, sys.argv[1])(sys.argv[2]) as made:
    target = made / "half" if made.is_dir() else made
    target.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer():
    """Starts a process that is in the middle of writing."""
    started = []

    def start(function, path):
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, function, str(path)],
            stdout=subprocess.PIPE,
            cwd=Path(files.__file__).parents[1],
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_new_directory_appears_at_the_end(tmp_path):
    with files.new_directory(tmp_path / "a") as made:
        (made / "x").write_text("1")
        assert not (tmp_path / "a").exists()
        assert made.parent == tmp_path
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["x"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_directory_leaves_nothing(tmp_path, error):
    def fail():
        with files.new_directory(tmp_path / "a") as made:
            (made / "x").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", ["mkdir", "touch", "fifo", "link"])
def test_what_stands_at_a_new_directory_stays(tmp_path, make):
    path = tmp_path / "a"
    if make == "fifo":
        os.mkfifo(path)
    elif make == "link":
        path.symlink_to("nowhere")
    else:
        getattr(path, make)()
    before = path.lstat()
    with (
        pytest.raises(DestinationError, match="expected a new path"),
        files.new_directory(path),
    ):
        pytest.fail("the body ran")
    assert os.path.samestat(path.lstat(), before)
    assert names(tmp_path) == ["a"]


def test_what_appears_during_writing_stays(tmp_path):
    with (
        pytest.raises(DestinationError, match="expected a new path"),
        files.new_directory(tmp_path / "a"),
    ):
        (tmp_path / "a").write_text("precious")
    assert (tmp_path / "a").read_text() == "precious"
    assert names(tmp_path) == ["a"]


def test_what_appears_in_the_last_moment_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_check_new", lambda path: None)

    def write():
        with files.new_directory(tmp_path / "a"):
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "thesis").write_text("precious")

    with pytest.raises(DestinationError, match="appeared during writing"):
        write()
    assert names(tmp_path / "a") == ["thesis"]
    assert names(tmp_path) == ["a"]


def test_a_missing_parent_no_room_and_a_name_that_is_no_text_are_refused(tmp_path):
    for path, size, message in (
        (tmp_path / "no" / "a", 0, "expected an existing parent directory"),
        (tmp_path / "a", 1 << 62, "bytes of free space"),
        (tmp_path / os.fsdecode(b"\xff"), 0, r"expected a path in UTF-8, .*\\xff"),
    ):
        with (
            pytest.raises(DestinationError, match=message),
            files.new_directory(path, expected_bytes=size),
        ):
            pytest.fail("the body ran")
    assert names(tmp_path) == []


def test_a_second_run_is_refused_and_does_not_harm_the_first(tmp_path):
    with files.new_directory(tmp_path / "a") as made:
        (made / "x").write_text("1")
        with (
            pytest.raises(DestinationError, match="still running"),
            files.new_directory(tmp_path / "a"),
        ):
            pytest.fail("the body ran")
        assert (made / "x").read_text() == "1"
    assert names(tmp_path / "a") == ["x"]
    assert names(tmp_path) == ["a"]


def test_of_many_threads_exactly_one_makes_the_directory(tmp_path):
    gate = threading.Barrier(16)
    won, lost = [], []

    def run(number):
        gate.wait()
        try:
            with files.new_directory(tmp_path / "a") as made:
                (made / str(number)).write_text("1")
        except DestinationError as error:
            lost.append(str(error))
        else:
            won.append(str(number))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 15
    assert names(tmp_path / "a") == won
    assert names(tmp_path) == ["a"]


def test_without_locks_equal_process_ids_still_make_one_directory(
    tmp_path, monkeypatch
):
    """As containers do that share a disk which has no locks."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(locks, "fcntl", None)
    first = files.new_directory(tmp_path / "a")
    made = first.__enter__()
    (made / "first").write_text("1")
    with files.new_directory(tmp_path / "a") as other:
        assert other != made
        (other / "second").write_text("2")
    with pytest.raises(DestinationError, match="expected a new path"):
        first.__exit__(None, None, None)
    assert names(tmp_path / "a") == ["second"]
    assert names(tmp_path) == ["a"]


def test_the_directory_of_a_killed_run_is_removed_by_the_next(tmp_path, writer):
    kill(writer("new_directory", tmp_path / "a"))
    (left,) = tmp_path.glob(".a.partial-*")
    assert names(left) == ["half"]
    (tmp_path / ".a.partial-4711").mkdir()  # as earlier versions named them
    (tmp_path / ".ab.partial-4711").mkdir()  # of another destination
    with files.new_directory(tmp_path / "a") as made:
        assert not left.exists()
        assert names(made) == []
    assert names(tmp_path) == [".ab.partial-4711", "a"]


def test_the_directory_of_a_live_run_stays(tmp_path, writer):
    writer("new_directory", tmp_path / "a")
    (left,) = tmp_path.glob(".a.partial-*")
    with (
        pytest.raises(DestinationError, match="still running"),
        files.new_directory(tmp_path / "a"),
    ):
        pytest.fail("the body ran")
    files.remove_dead(tmp_path)
    assert names(left) == ["half"]


def test_a_folder_is_cleaned_of_all_dead_directories(tmp_path, writer):
    kill(writer("new_directory", tmp_path / "a"))
    writer("new_directory", tmp_path / "b")
    (tmp_path / ".c.partial-notes").mkdir()
    files.remove_dead(tmp_path)
    found = [name for name in names(tmp_path) if "partial" in name]
    assert len(found) == 2
    assert found[0].startswith(".b.partial-")
    assert found[1] == ".c.partial-notes"


def test_a_file_is_replaced_at_the_end(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with files.replaced_file(file) as partial:
        partial.write_text("new")
        assert partial.suffix == ".txt"
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_file_leaves_the_earlier_one(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def fail():
        with files.replaced_file(tmp_path / "a") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("make", ["mkdir", "fifo", "link"])
def test_only_files_are_replaced_by_files(tmp_path, make):
    path, kept = tmp_path / "a", tmp_path / "kept"
    kept.write_text("precious")
    if make == "fifo":
        os.mkfifo(path)
    elif make == "link":
        path.symlink_to(kept)
    else:
        path.mkdir()
    with (
        pytest.raises(DestinationError, match="expected a new file or one to replace"),
        files.replaced_file(path),
    ):
        pytest.fail("the body ran")
    assert kept.read_text() == "precious"
    assert names(tmp_path) == ["a", "kept"]


def test_the_file_of_a_killed_run_is_removed_and_that_of_a_live_one_stays(
    tmp_path, writer
):
    path = tmp_path / "a.npz"
    kill(writer("replaced_file", path))
    (dead,) = tmp_path.glob(".a.partial-*.npz")
    writer("replaced_file", path)
    (live,) = (p for p in tmp_path.glob(".a.partial-*.npz") if p != dead)
    assert not dead.exists()
    with files.replaced_file(path) as partial:
        partial.write_text("new")
    assert live.read_text() == "half"
    assert path.read_text() == "new"


def test_a_lock_file_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Who held it removes it between our opening and our locking it."""
    lock, original, calls = tmp_path / "l", locks.try_lock, []

    def late(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            lock.unlink()
        return original(descriptor)

    monkeypatch.setattr(locks, "try_lock", late)
    held = locks.take(lock)
    assert held is not None
    assert len(calls) == 2
    assert locks.names(held.descriptor, lock)
    assert locks.take(lock) is None
    os.close(held.descriptor)


def test_kinds_of_what_stands_at_a_path_are_told_apart(tmp_path, monkeypatch):
    import stat

    assert files.kind_of(tmp_path / "none") is None
    assert files.kind_of(tmp_path) == "a directory"
    for mode, kind in (
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFBLK, "a block device"),
        (stat.S_IFSOCK, "a socket"),
        (stat.S_IFREG, "a file"),
    ):
        fields = [mode | 0o600, *[0] * 9]
        monkeypatch.setattr(Path, "lstat", lambda self, f=fields: os.stat_result(f))
        assert files.kind_of(tmp_path) == kind
