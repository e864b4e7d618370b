"""Checksums of files and directories, and lists of what a directory must hold.

XXH3 with 128 bits: it reads faster than disks do, and no flipped bit escapes it. It
finds damage; it is no protection against somebody who means to deceive.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from sixbit_jax.reading.json_file import read_json_object

MANIFEST = "sixbit-checksums.json"
DIFFUSERS = "diffusers checkpoint"
_FORMAT = "sixbit-jax checksums"
_CHUNK = 1 << 20
# A list of this many bytes names a million files; a larger one is no list of ours.
_LARGEST_MANIFEST = 1 << 28


def of_bytes(data: bytes) -> str:
    """The checksum of bytes, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def _update(state: xxhash.xxh3_128, file: Path) -> None:
    with open(file, "rb", buffering=0) as stream:
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while count := stream.readinto(buffer):
            state.update(view[:count])


def of_file(file: Path) -> str:
    """The checksum of a file's contents, as 32 hex digits."""
    state = xxhash.xxh3_128()
    _update(state, file)
    return state.hexdigest()


def files_under(directory: Path) -> Iterator[Path]:
    """All that is no directory below a directory, in a fixed order; links too."""
    for folder, folders, names in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders.sort()
        for name in sorted([*names, *links]):
            yield Path(folder) / name


def of_directory(directory: Path) -> str:
    """One checksum of all files below a directory, of their names and their sizes."""
    state = xxhash.xxh3_128()
    for file in files_under(directory):
        name = os.fsencode(file.relative_to(directory).as_posix())
        if not file.is_file():  # reading a FIFO would wait for ever
            state.update(name + b"\0no file\0")
            continue
        state.update(name + b"\0" + str(file.stat().st_size).encode() + b"\0")
        _update(state, file)
    return state.hexdigest()


def write_manifest(directory: Path, kind: str) -> None:
    """Lists every file below a directory, with its checksum, in `MANIFEST`.

    Args:
      directory: where.
      kind: the kind of the directory: what makes such ones, and may replace them.
    """
    files = {
        file.relative_to(directory).as_posix(): of_file(file)
        for file in files_under(directory)
        if file != directory / MANIFEST
    }
    # Sealed: a damaged list must not read as a list of damaged files.
    content = {
        "format": _FORMAT,
        "kind": kind,
        "checksum": _seal(kind, files),
        "files": files,
    }
    text = json.dumps(content, indent=1) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _seal(kind: str, files: dict[str, str]) -> str:
    return of_bytes(json.dumps([kind, files], sort_keys=True).encode())


def read_manifest(directory: Path, *, kind: str) -> dict[str, str]:
    """The checksums of a directory's files, by their names relative to it.

    Raises:
      ValueError: the list is absent, damaged, or not one of this kind.
    """
    file = directory / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise ValueError(f"{directory}: expected {MANIFEST} in it, found none")
    try:
        content = read_json_object(file, largest=_LARGEST_MANIFEST)
        files = content["files"]
        found = content["kind"]
        intact = content["format"] == _FORMAT
        intact = intact and content["checksum"] == _seal(found, files)
        intact = intact and all(isinstance(v, str) for v in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        intact, files, found = False, {}, None
    if not intact:
        raise ValueError(
            f"{file}: expected a list of checksums, found a damaged or another file"
        )
    if found != kind:
        raise ValueError(f"{directory}: expected a {kind}, found a {found}")
    return files


def damaged(directory: Path, *, kind: str) -> list[str]:
    """What is missing or changed in a directory with a list of checksums.

    Returns:
      A line for each file, empty if all are as they were written.

    Raises:
      ValueError: the list is absent, damaged, or not one of this kind.
    """
    problems = []
    for name, expected in read_manifest(directory, kind=kind).items():
        file = directory / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif (found := of_file(file)) != expected:
            problems.append(f"{name}: expected the checksum {expected}, found {found}")
    return problems


def foreign(directory: Path, *, kind: str) -> list[str]:
    """Files of a directory that its list of checksums does not have as they are now.

    Returns:
      Names of files that were added, and of files that were changed.

    Raises:
      ValueError: the list is absent, damaged, or not one of this kind.
    """
    known = read_manifest(directory, kind=kind)
    names = []
    for file in files_under(directory):
        name = file.relative_to(directory).as_posix()
        if name == MANIFEST:
            continue
        if name not in known:
            names.append(name)
        elif file.is_symlink() or not file.is_file() or of_file(file) != known[name]:
            names.append(f"{name} (changed)")
    return names
