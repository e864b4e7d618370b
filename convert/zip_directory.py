"""Zip files of stored entries, as torch.save writes them, believed in nothing.

A zip file says everything twice: in the directory at its end, in a header before each
entry, and for some writers in a descriptor behind it. All of it is compared, the
entries have to fill the file without hole or overlap.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from convert.errors import ConversionError
from convert.zip_entry import Entry
from sixbit_jax.reading.messages import brief, named
from sixbit_jax.reading.regular_file import open_regular

# Far more than any checkpoint has.
_LARGEST_DIRECTORY = 16 * 2**20
_MOST_ENTRIES = 100_000
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_END_SIZE, _END64_SIZE, _LOCATOR_SIZE = 22, 56, 20
_CENTRAL_SIZE, _LOCAL_SIZE = 46, 30
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_HAS_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11
# Bits 1 and 2 describe a compression that is not there.
_FLAGS = _HAS_DESCRIPTOR | _UTF8 | 0b110
_STORED = 0
_ZIP64_FIELD = 1


class _Damage(Exception):
    """What does not fit; the file's name is put before it."""


def read_directory(file: Path) -> dict[str, Entry]:
    """Reads which entries a zip file holds, and checks all its headers.

    Args:
      file: with stored entries only, and nothing before, between or behind them.

    Returns:
      Entries by name, in the order of the directory; none of their bytes is read yet.

    Raises:
      ConversionError: if it is no such file, or its headers contradict each other.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            entries = _read(file, stream, size)
    except (_Damage, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        text = str(error)
        raise ConversionError(
            text if text.startswith(str(file)) else f"{file}: {text}"
        ) from error
    return entries


def _read(file: Path, stream: BinaryIO, size: int) -> dict[str, Entry]:
    begin, end, count = _find_directory(stream, size)
    stream.seek(begin)
    directory = _exactly(stream, end - begin)
    entries: dict[str, Entry] = {}
    headers: list[tuple[_Central, int]] = []
    position = 0
    while position < len(directory) and len(headers) <= count:
        central, offset, position = _central(directory, position)
        if central.name in entries:
            raise _Damage(
                f"expected one entry of each name, found two {named(central.name)}"
            )
        headers.append((central, offset))
        entries[central.name] = Entry(
            file, central.name, 0, central.nbytes, central.crc
        )
    if len(headers) != count:
        raise _Damage(
            f"expected {count:,} entries, found another number in the directory"
        )
    expected = 0
    headers.sort(key=lambda header: header[1])
    following = [offset for _, offset in headers[1:]] + [begin]
    for (central, offset), after in zip(headers, following, strict=True):
        if offset != expected:
            raise _Damage(
                f"{named(central.name)}: expected to begin at byte {expected:,}, found "
                f"{offset:,}"
            )
        data = _check_local(stream, central, offset, after)
        entries[central.name] = Entry(
            file, central.name, data, central.nbytes, central.crc
        )
        expected = after
    if expected != begin:
        raise _Damage(
            f"expected the directory at byte {expected:,}, found it {begin:,}"
        )
    return entries


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _Damage(f"expected {size:,} more bytes, found {len(data):,}: truncated")
    return data


def _find_directory(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many entries it has."""
    stream.seek(0)
    begin = stream.read(4)
    no_zip = (
        f"expected a zip file of torch.save, found {brief(begin)} at its beginning and "
        "no directory at its end: truncated, or another format"
    )
    if size < _END_SIZE:
        raise _Damage(no_zip)
    stream.seek(size - _END_SIZE)
    tail = _exactly(stream, _END_SIZE)
    if tail[:4] != _END or tail[20:] != b"\0\0":
        raise _Damage(no_zip)
    disks, here, total, length, offset = struct.unpack("<4xIHHII2x", tail)
    end = size - _END_SIZE
    wide = _find_wide(stream, end)
    if wide is not None:
        end, *found = wide
        stated = (here, total, length, offset)
        limits = (_FULL16, _FULL16, _FULL32, _FULL32)
        for small, large, limit in zip(stated, found, limits, strict=True):
            if small != large and (small != limit or large < limit):
                raise _Damage(
                    f"expected both ends of the directory to say the same, found "
                    f"{large:,} and {small:,}"
                )
        here, total, length, offset = found
    if disks or here != total:
        raise _Damage("expected one zip file, found a part of several")
    if offset + length != end:
        raise _Damage(
            f"expected a directory up to byte {end:,}, found {length:,} bytes at "
            f"{offset:,}"
        )
    if length > _LARGEST_DIRECTORY or total > _MOST_ENTRIES:
        raise _Damage(
            f"expected a directory of at most {_LARGEST_DIRECTORY:,} bytes and "
            f"{_MOST_ENTRIES:,} entries, found {length:,} bytes and {total:,} entries"
        )
    return offset, end, total


def _find_wide(stream: BinaryIO, end: int) -> tuple[int, int, int, int, int] | None:
    """The zip64 record before `end`: its place, entries twice, length, offset."""
    place = end - _LOCATOR_SIZE - _END64_SIZE
    if place < 0:
        return None
    stream.seek(place)
    record = _exactly(stream, _END64_SIZE)
    locator = _exactly(stream, _LOCATOR_SIZE)
    if locator[:4] != _LOCATOR:
        return None
    disk, at, disks = struct.unpack("<4xIQI", locator)
    if record[:4] != _END64 or disk or disks != 1 or at != place:
        raise _Damage(
            f"expected the zip64 record at byte {place:,}, found it said to be at "
            f"{at:,}"
        )
    length, here_disk, first_disk, here, total, size, offset = struct.unpack(
        "<4xQ4xIIQQQQ", record
    )
    if length != _END64_SIZE - 12 or here_disk or first_disk:
        raise _Damage(f"expected a zip64 record of 44 bytes, found {length:,}")
    return place, here, total, size, offset


@dataclass(frozen=True)
class _Central:
    """What the directory says of an entry."""

    name: str
    raw: bytes
    flags: int
    stamp: bytes
    crc: int
    nbytes: int


def _central(directory: bytes, position: int) -> tuple[_Central, int, int]:
    """One entry of the directory, its header's offset, and where the next begins."""
    header = directory[position : position + _CENTRAL_SIZE]
    if len(header) < _CENTRAL_SIZE or header[:4] != _CENTRAL:
        raise _Damage(f"expected an entry at byte {position:,} of the directory")
    flags, method, stamp, crc, packed, nbytes = struct.unpack("<8xHH4sIII", header[:28])
    name_size, extra_size, comment, disk = struct.unpack("<HHHH", header[28:36])
    (offset,) = struct.unpack("<I", header[42:])
    middle = position + _CENTRAL_SIZE + name_size
    end = middle + extra_size + comment
    if end > len(directory):
        raise _Damage(f"expected an entry at byte {position:,} of the directory")
    raw = directory[position + _CENTRAL_SIZE : middle]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Damage(f"expected names in UTF-8, found {brief(raw)}") from error
    if method != _STORED or flags & ~_FLAGS:
        raise _Damage(
            f"expected entries stored as they are, found {named(name)} compressed or "
            f"encrypted (method {method}, flags {flags:#x})"
        )
    if comment or disk or not name or "\0" in name:
        raise _Damage(f"expected an entry as torch writes it, found {brief(name)}")
    wide = _zip64(directory[middle:end], name)
    values = []
    for value in (nbytes, packed, offset):
        values.append(wide.pop(0) if value == _FULL32 and wide else value)
    nbytes, packed, offset = values
    if packed != nbytes or wide:
        raise _Damage(
            f"{named(name)}: expected one size, found {nbytes:,} and {packed:,} bytes"
        )
    return _Central(name, raw, flags, stamp, crc, nbytes), offset, end


def _zip64(extra: bytes, name: str) -> list[int]:
    """The wide numbers of an extra field, in the order of those they replace."""
    position = 0
    found: list[int] = []
    while position < len(extra):
        kind, size = struct.unpack(
            "<HH", extra[position : position + 4].ljust(4, b"\0")
        )
        position += 4 + size
        if position > len(extra):
            raise _Damage(f"{named(name)}: expected extra fields, found damaged ones")
        if kind == _ZIP64_FIELD:
            if found or size not in (8, 16, 24):
                raise _Damage(f"{named(name)}: expected one zip64 field")
            found = list(
                struct.unpack(f"<{size // 8}Q", extra[position - size : position])
            )
    return found


def _check_local(stream: BinaryIO, central: _Central, offset: int, after: int) -> int:
    """Compares the header before an entry, and the descriptor behind it.

    Args:
      stream: the stream of the file.
      central: what the directory says.
      offset: the offset of the header.
      after: where the next header, or the directory, begins.

    Returns:
      Where the entry's bytes begin.
    """
    name = named(central.name)
    stream.seek(offset)
    header = stream.read(_LOCAL_SIZE)
    if len(header) < _LOCAL_SIZE or header[:4] != _LOCAL:
        raise _Damage(f"{name}: expected an entry at byte {offset:,}, found none")
    flags, method, stamp, crc, packed, nbytes = struct.unpack("<6xHH4sIII", header[:26])
    name_size, extra_size = struct.unpack("<HH", header[26:])
    data = offset + _LOCAL_SIZE + name_size + extra_size
    left = after - data - central.nbytes
    if name_size != len(central.raw) or left < 0:
        raise _Damage(
            f"{name}: expected its name and {central.nbytes:,} bytes between byte "
            f"{offset:,} and {after:,}, found no room for them"
        )
    text = _exactly(stream, name_size + extra_size)
    wide = _zip64(text[name_size:], central.name)
    if nbytes == _FULL32 and packed == _FULL32 and len(wide) >= 2:
        nbytes, packed = wide[:2]
    later = bool(flags & _HAS_DESCRIPTOR)
    stated = (flags, method, stamp, text[:name_size])
    expected = (central.flags, _STORED, central.stamp, central.raw)
    numbers = (crc, packed, nbytes)
    told = (central.crc, central.nbytes, central.nbytes)
    if stated != expected or (numbers != told and not (later and numbers == (0, 0, 0))):
        raise _Damage(
            f"{name}: expected the header at byte {offset:,} to say what the directory "
            f"says, found another name, size, CRC-32 or kind"
        )
    stream.seek(data + central.nbytes)
    _check_descriptor(stream.read(left) if left <= 24 else b"", central, left, later)
    return data


def _check_descriptor(found: bytes, central: _Central, left: int, later: bool) -> None:
    """Sizes behind the data: with or without a signature, of 4 or 8 bytes each."""
    crc, nbytes = central.crc, central.nbytes
    expected = [b""]
    if later:
        narrow = struct.pack("<III", crc, nbytes & _FULL32, nbytes & _FULL32)
        wide = struct.pack("<IQQ", crc, nbytes, nbytes)
        expected = [_DESCRIPTOR + wide, wide]
        if nbytes < _FULL32:
            expected += [_DESCRIPTOR + narrow, narrow]
    if left > 24 or found not in expected:
        raise _Damage(
            f"{named(central.name)}: expected "
            f"{'its size and CRC-32' if later else 'the next entry'} behind its "
            f"{nbytes:,} bytes, found {left:,} other bytes"
        )


__all__ = ["Entry", "read_directory"]
