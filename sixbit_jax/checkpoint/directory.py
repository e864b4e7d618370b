"""A checkpoint's directory appears complete under its name, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sixbit_jax import files
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
    with open(file, "xb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        finally:
            file.unlink()


@contextmanager
def new_directory(
    path: str | os.PathLike, *, expected_bytes: int = 0
) -> Iterator[Path]:
    """As `files.new_directory`, with its errors as those of a checkpoint.

    Args:
      path: the directory to make; its parent must exist.
      expected_bytes: what the body is going to write.

    Raises:
      CheckpointError: if `path` exists, another run is making it, its parent does not
        exist, or there is no room.
    """
    try:
        with files.new_directory(path, expected_bytes=expected_bytes) as temporary:
            yield temporary
    except files.DestinationError as error:
        raise CheckpointError(str(error)) from error
