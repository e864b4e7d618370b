"""Locks of the operating system: who holds one is alive, however it ends."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class Lock(NamedTuple):
    """An open lock file.

    Attributes:
      descriptor: closing it lets go of the lock.
      exclusive: whether it is locked; False on file systems without locks.
    """

    descriptor: int
    exclusive: bool


def try_lock(descriptor: int) -> bool | None:
    """Whether the lock of an open file was free; None if there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def names(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the name of an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def take(path: Path) -> Lock | None:
    """Makes and locks a lock file; None if another run holds it.

    Whoever holds it removes the file before letting go.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            free = try_lock(descriptor)
            # Who held it before may have removed the file after it was opened here.
            if free is None or (free and names(descriptor, path)):
                return Lock(descriptor, bool(free))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not free:
            return None
