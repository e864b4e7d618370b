"""Opening files of which it is not known what they are.

A FIFO waits for a writer, a device has no end: neither is opened. A symbolic link is
what it leads to.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def check_regular(path: str | os.PathLike) -> os.stat_result:
    """Makes sure that a path leads to a regular file, without opening it.

    Returns:
      What the file system says of it.

    Raises:
      FileNotFoundError: there is nothing, or a link that leads to nothing.
      ValueError: it is something else, or no path at all.
    """
    return _checked(os.stat(path), path)


def _checked(found: os.stat_result, path: str | os.PathLike) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ValueError(f"{path}: expected a regular file, found {kind}")
    return found


def open_regular(path: str | os.PathLike, *, buffering: int = -1) -> BinaryIO:
    """Opens a regular file for reading bytes; refuses everything else at once.

    Args:
      path: the path of the file, or of a symbolic link to it.
      buffering: as of `open`.

    Raises:
      FileNotFoundError: there is nothing.
      ValueError: it is not a regular file.
    """
    check_regular(path)
    # Without O_NONBLOCK, a FIFO that took the file's place meanwhile would wait.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        _checked(os.fstat(handle), path)
        return open(handle, "rb", buffering=buffering)
    except BaseException:
        os.close(handle)
        raise


def is_there(path: Path) -> bool:
    """Whether a name is taken, by whatever: for files that may be absent.

    `Path.is_file` takes a FIFO or a dangling link for an absent file.
    """
    return os.path.lexists(path)


__all__ = ["check_regular", "is_there", "open_regular"]
