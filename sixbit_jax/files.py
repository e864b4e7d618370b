"""Writing whole or not at all: the one place where files and directories appear.

Everything is written under a random name beside its destination and renamed when it is
complete. Runs hold a lock of the operating system while they write: a second run into
the same place is refused, and what a killed run left behind is known to be dead, and is
removed by the next one. Nothing is ever removed that was not written here.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sixbit_jax import checksums, locks

_SHOWN = 8


class DestinationError(ValueError):
    """A place that cannot be written to."""


def shown(path: str | os.PathLike) -> str:
    """A path as text that every encoding can write; bytes without meaning as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def kind_of(path: Path) -> str | None:
    """What stands at a path ("a symbolic link", "a FIFO"); None for nothing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Keeps other runs from writing to a destination, by a lock file beside it.

    Args:
      path: the destination; need not exist.

    Yields:
      Whether the file system has locks. If so, nobody else is writing there.

    Raises:
      DestinationError: another run is writing there.
    """
    path = Path(path).absolute()
    lock = path.with_name(f".{path.name}.lock")
    held = locks.take(lock)
    if held is None:
        raise DestinationError(
            f"destination: expected no other run that writes to {shown(path)}, found "
            "one that is still running"
        )
    try:
        yield held.exclusive
    finally:
        lock.unlink(missing_ok=True)
        os.close(held.descriptor)


def _check_place(path: Path, expected_bytes: int) -> None:
    """The parent exists, the name can be written down, and there is room."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DestinationError(
            f"destination: expected a path in UTF-8, found {shown(path)}"
        ) from error
    if not path.parent.is_dir():
        raise DestinationError(
            f"destination: expected an existing parent directory, found none at "
            f"{path.parent}"
        )
    free = shutil.disk_usage(path.parent).free
    if free < expected_bytes:
        raise DestinationError(
            f"destination {path}: expected {expected_bytes:,} bytes of free space, "
            f"found {free:,}"
        )


def _check_new(path: Path) -> None:
    if (kind := kind_of(path)) is not None:
        raise DestinationError(
            f"destination: expected a new path, found {path} there ({kind})"
        )


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.{word}-{secrets.token_hex(8)}")


def _leftovers(path: Path, word: str) -> list[Path]:
    """Directories that runs into `path` have made beside it."""
    # Earlier versions put the number of the process where the random digits are.
    name = re.compile(re.escape(f".{path.name}.{word}-") + "[0-9a-f]+")
    return [
        Path(entry.path)
        for entry in os.scandir(path.parent)
        if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
    ]


def _remove_dead(path: Path) -> None:
    """Removes what killed runs into `path` have left; its lock must be held."""
    for leftover in _leftovers(path, "partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_dead(folder: Path) -> None:
    """Removes what killed runs have left of the directories that they made in a folder.

    Those of runs that are still at work stay.
    """
    name = re.compile(r"\.(.+)\.partial-[0-9a-f]+")
    found = (name.fullmatch(entry.name) for entry in os.scandir(folder))
    for destination in {folder / match[1] for match in found if match}:
        try:
            with locked(destination) as alone:
                if alone:
                    _remove_dead(destination)
        except DestinationError:  # its run is still at work
            continue


@contextmanager
def new_directory(
    path: str | os.PathLike, *, expected_bytes: int = 0
) -> Iterator[Path]:
    """Yields a temporary sibling of `path`, renamed to it when the body succeeds.

    Any exception in the body removes the temporary directory.

    Args:
      path: the directory to make; its parent must exist.
      expected_bytes: what the body is going to write; refused at once if the file
        system has less room than that.

    Raises:
      DestinationError: if `path` exists, another run is making it, its parent does not
        exist, or there is no room.
    """
    path = Path(path).absolute()
    _check_new(path)
    _check_place(path, expected_bytes)
    with locked(path) as alone:
        _check_new(path)
        if alone:
            _remove_dead(path)
        with _temporary(path) as temporary:
            yield temporary
            _check_new(path)
            _rename(temporary, path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = _beside(path, "partial")
    # Outside the `try`: a directory that somebody else has made is not removed here.
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        # rename() replaces an empty directory, and nothing else.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise DestinationError(
                f"destination: {path} appeared during writing"
            ) from error
        raise


def _refuse_foreign(path: Path, foreign: Callable[[Path], list[str]]) -> None:
    """Refuses to replace what stands at `path` unless all of it was written here."""
    kind = kind_of(path)
    if kind is None:
        return
    if kind != "a directory":
        raise DestinationError(
            f"destination: expected a new directory or one to replace, found {path} "
            f"there ({kind})"
        )
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return
    try:
        found = foreign(path)
    except ValueError as error:
        raise DestinationError(
            f"destination: expected a new directory or one that this command wrote "
            f"earlier, found {path} with {_listing(names)} ({error})"
        ) from error
    if found:
        raise DestinationError(
            f"destination: expected only what this command wrote in {path}, which it "
            f"would replace, found {_listing(found)}"
        )


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more


@contextmanager
def replaced_directory(
    path: str | os.PathLike,
    kind: str = "",
    *,
    foreign: Callable[[Path], list[str]] | None = None,
) -> Iterator[Path]:
    """As `new_directory`, but an earlier directory of the same kind is replaced.

    What was written is listed in it with checksums; a directory is replaced only if all
    of its files are on its list, as they were written.

    Args:
      path: the directory; the parents of it are made.
      kind: the kind of the directory: "report".
      foreign: for directories that say in another way what belongs to them: names the
        files that do not, and raises ValueError for a directory of another kind. No
        list is written then, and the body makes the directory that is yielded.

    Raises:
      DestinationError: if something else stands there, or another run writes there.
    """
    path = Path(path).absolute()
    listed = foreign is None
    if foreign is None:
        foreign = partial(checksums.foreign, kind=kind)
    _refuse_foreign(path, foreign)
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_place(path, 0)
    with locked(path) as alone:
        if alone:
            _remove_dead(path)
            _restore_replaced(path)
        _refuse_foreign(path, foreign)
        with _temporary(path) as temporary:
            made = temporary if listed else temporary / "made"
            yield made
            if listed:
                checksums.write_manifest(made, kind)
            _refuse_foreign(path, foreign)
            _exchange(made, path)
        if not listed:
            temporary.rmdir()


def _exchange(made: Path, path: Path) -> None:
    """Puts a directory in the place of an earlier one, which is removed."""
    if kind_of(path) is None:
        return _rename(made, path)
    old = _beside(path, "replaced")
    path.rename(old)
    try:
        _rename(made, path)
    except BaseException:
        old.rename(path)
        raise
    return shutil.rmtree(old, ignore_errors=True)


def _restore_replaced(path: Path) -> None:
    """Completes what a run did not that was killed between its two renames."""
    for old in _leftovers(path, "replaced"):
        if kind_of(path) is None:
            old.rename(path)
        else:
            shutil.rmtree(old, ignore_errors=True)


def _refuse_special(path: Path) -> None:
    kind = kind_of(path)
    if kind not in (None, "a file"):
        raise DestinationError(
            f"{shown(path)}: expected a new file or one to replace, found {kind}"
        )


@contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name with the same suffix, renamed to `path` at the end.

    An exception in the body removes the temporary file and leaves `path` as it was.

    Args:
      path: the file; replaced if it is there.

    Raises:
      DestinationError: if something else than a file stands there.
    """
    path = Path(path).absolute()
    _refuse_special(path)
    _remove_dead_files(path)
    temporary, descriptor = _new_file(path)
    try:
        yield temporary
        _refuse_special(path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8: a reader never sees half of it."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _new_file(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path`, open and locked."""
    while True:
        name = f".{path.stem}.partial-{secrets.token_hex(8)}{path.suffix}"
        new = path.with_name(name)
        # Not tempfile's, which only their owner may read.
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Between the two calls another run may have taken it for a dead one.
        if locks.try_lock(descriptor) is not False and locks.names(descriptor, new):
            return new, descriptor
        os.close(descriptor)


def _remove_dead_files(path: Path) -> None:
    """Removes the temporary files of killed runs: those that nobody holds locked."""
    name = re.compile(
        re.escape(f".{path.stem}.partial-") + "[0-9a-f]{16}" + re.escape(path.suffix)
    )
    for entry in os.scandir(path.parent):
        if not name.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        try:
            descriptor = os.open(entry.path, os.O_RDWR)
        except OSError:  # gone meanwhile, or somebody else's
            continue
        try:
            if locks.try_lock(descriptor):
                Path(entry.path).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
