"""Bytes of a zip file's entry, and their CRC-32 over what is handed out."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from convert.errors import ConversionError
from sixbit_jax.reading.messages import named
from sixbit_jax.reading.regular_file import open_regular

_CHUNK = 1 << 20


@dataclass
class _Verified:
    """State of the file (size, time) in which an entry's bytes had their CRC-32."""

    state: tuple[int, int] | None = None


@dataclass(frozen=True)
class Entry:
    """An entry of a zip file whose headers agree.

    Attributes:
      file: the zip file.
      name: the name of the entry.
      offset: the offset of its first byte in the file.
      nbytes: how many there are.
      crc: CRC-32 that the file says they have.
    """

    file: Path
    name: str
    offset: int
    nbytes: int
    crc: int
    _verified: _Verified = field(default_factory=_Verified, repr=False, compare=False)

    def read_into(self, buffer: memoryview, begin: int) -> None:
        """Reads a part of the entry, and checks all of it the first time.

        Memory is what `buffer` has, and 1 MiB.

        Args:
          buffer: to be filled.
          begin: first byte, counted from the beginning of the entry.

        Raises:
          ConversionError: if the file ends early, or the CRC-32 is another.
        """
        end = begin + len(buffer)
        try:
            stream = open_regular(self.file, buffering=0)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        with stream:
            now = os.fstat(stream.fileno())
            state = (now.st_size, now.st_mtime_ns)
            if self._verified.state == state:
                stream.seek(self.offset + begin)
                self._fill(stream, buffer)
                return
            stream.seek(self.offset)
            crc = 0
            scratch = memoryview(bytearray(min(_CHUNK, self.nbytes)))
            for target in _pieces(self.nbytes, begin, end, buffer, scratch):
                self._fill(stream, target)
                crc = zlib.crc32(target, crc)
        if crc != self.crc:
            hint = (
                "; it was saved without checksums (set_crc32_options), save it again"
                if self.crc == 0
                else "; its bytes were changed"
            )
            raise ConversionError(
                f"{self.file}: {named(self.name)}: expected the CRC-32 "
                f"{self.crc:08x}, found {crc:08x}{hint}"
            )
        self._verified.state = state

    def read(self) -> bytes:
        """All bytes, checked; for small entries."""
        buffer = bytearray(self.nbytes)
        self.read_into(memoryview(buffer), 0)
        return bytes(buffer)

    def _fill(self, stream: BinaryIO, target: memoryview) -> None:
        done = 0
        while done < len(target):
            count = stream.readinto(target[done:])  # pyrefly: ignore
            if not count:
                raise ConversionError(
                    f"{self.file}: {named(self.name)}: expected {self.nbytes:,} bytes "
                    f"at {self.offset:,}, found the end of the file"
                )
            done += count


def _pieces(
    nbytes: int, begin: int, end: int, buffer: memoryview, scratch: memoryview
) -> Iterator[memoryview]:
    """Where the bytes of an entry go, in their order: those wanted to `buffer`."""
    for start, stop, wanted in ((0, begin, False), (begin, end, True)):
        yield from _chunks(start, stop, buffer if wanted else scratch, wanted)
    yield from _chunks(end, nbytes, scratch, False)


def _chunks(
    start: int, stop: int, place: memoryview, forward: bool
) -> Iterator[memoryview]:
    for position in range(start, stop, _CHUNK):
        size = min(_CHUNK, stop - position)
        first = position - start if forward else 0
        yield place[first : first + size]


__all__ = ["Entry"]
