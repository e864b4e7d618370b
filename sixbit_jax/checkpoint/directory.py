"""A directory that appears complete under its name, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sixbit_jax.reading.messages import bounded


class CheckpointError(ValueError):
    """A checkpoint directory that cannot be read or written.

    What a file holds may be in the message; it is cut to a length that can be read.
    """

    def __init__(self, message: str):
        super().__init__(bounded(message))


def reserve(directory: Path, size: int) -> None:
    """Makes sure that `size` more bytes fit into the file system of `directory`.

    Allocates a file of that size and deletes it: quotas and limits on the size of files
    are found out too, and found out here rather than in the threads of a writer.

    Raises:
      OSError: if the file system refuses.
    """
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    file = directory / ".reservation"
    with open(file, "wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        finally:
            file.unlink()


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
      CheckpointError: if `path` exists, its parent does not, or there is no room.
    """
    path = Path(path).absolute()
    if path.exists() or path.is_symlink():
        raise CheckpointError(f"destination: expected a new path, found {path} there")
    if not path.parent.is_dir():
        raise CheckpointError(
            f"destination: expected an existing parent directory, found none at "
            f"{path.parent}"
        )
    free = shutil.disk_usage(path.parent).free
    if free < expected_bytes:
        raise CheckpointError(
            f"destination {path}: expected {expected_bytes:,} bytes of free space, "
            f"found {free:,}"
        )
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        # Inside the `try`, so that an interrupt right after it is cleaned up too.
        temporary.mkdir()
        yield temporary
        # rename() would replace an empty directory that appeared meanwhile.
        if path.exists():
            raise CheckpointError(f"destination: {path} appeared during writing")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
