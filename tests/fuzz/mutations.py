"""Changes of files: of bits, of JSON values, of zip fields and of pickle opcodes.

Every mutation takes a `random.Random` and bytes, and gives bytes; the same generator
gives the same bytes.
"""

import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]


def flip_bits(rng: Random, data: bytes) -> bytes:
    """One to four flipped bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: Random, data: bytes) -> bytes:
    """Some bytes set to one of the values at which programs break."""
    changed = bytearray(data)
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(changed))
    value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"9", b'"', b"]", b"\n"))
    changed[at : at + size] = value * size
    return bytes(changed)


def truncate(rng: Random, data: bytes) -> bytes:
    """The beginning of a file."""
    return data[: rng.randrange(len(data))]


def append(rng: Random, data: bytes) -> bytes:
    """Bytes behind the end."""
    return data + rng.choice((b"\0", b" ", b"{}", rng.randbytes(rng.randrange(1, 64))))


def splice(rng: Random, data: bytes) -> bytes:
    """A piece removed, doubled, or put somewhere else."""
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    last = min(last, first + rng.choice((1, 8, 64, 4096)))
    piece = data[first:last]
    kind = rng.randrange(3)
    if kind == 0:
        return data[:first] + data[last:]
    at = first if kind == 1 else rng.randrange(len(data) + 1)
    return data[:at] + piece + data[at:]


BYTES: tuple[Mutation, ...] = (flip_bits, set_bytes, truncate, append, splice)

# Written as text, since Python's own writer refuses or changes some of them.
_VALUES = (
    *("null", "true", "false", "0", "-0", "1", "-1", "2", "0.5", "-0.5", "1.0"),
    *("1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity", "1e38", "1e300"),
    *("2147483648", "9223372036854775808", "10000000", "1e7", "-2147483649"),
    *('""', '"x"', '"false"', '"1"', '"0.5"', '"NaN"', '"\\ud800"', '"\\u0000"'),
    *('"../x"', '"\\n"', "[]", "[[]]", "{}", '{"a":1}', "[1,2]", "[1,2,2]", '["a"]'),
    "9" * 5000,
    "[" * 70 + "]" * 70,
    '{"a":' * 2000 + "1" + "}" * 2000,
    json.dumps("x" * 100_000),
    "[" + ",".join(["1"] * 1000) + "]",
)


class _Raw:
    """A place in a document whose text is put in later."""

    def __init__(self, text: str):
        self.text = text


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path]
    if isinstance(value, dict):
        for key, part in value.items():
            found += _places(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            found += _places(part, (*path, number))
    return found


def _written(value: Any, doubled: tuple = ()) -> str:
    if isinstance(value, _Raw):
        return value.text
    if isinstance(value, dict):
        pairs = [f"{json.dumps(k)}: {_written(v)}" for k, v in value.items()]
        return "{" + ", ".join([*pairs, *doubled]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value)


def change_json(rng: Random, data: bytes) -> bytes:
    """One value replaced, removed, renamed or doubled, or a field added."""
    document = json.loads(data)
    kind = rng.choice(("replace",) * 6 + ("remove", "rename", "double", "add", "swap"))
    places = [place for place in _places(document) if place]
    *parents, last = rng.choice(places)
    holder = document
    for step in parents:
        holder = holder[step]
    if kind == "swap":
        *others, other = rng.choice(places)
        if others == parents:
            holder[last], holder[other] = holder[other], holder[last]
    elif kind == "remove":
        del holder[last]
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice((f"{last}x", last[:-1], last.upper(), ""))] = holder.pop(last)
    elif kind == "add" and isinstance(holder, dict):
        holder[f"more_{rng.randrange(10)}"] = _Raw(rng.choice(_VALUES))
    elif kind == "double":
        pair = f"{json.dumps(str(last))}: {rng.choice(_VALUES)}"
        return _written(document, (pair,)).encode("utf-8", "surrogatepass")
    else:
        holder[last] = _Raw(rng.choice(_VALUES))
    return _written(document).encode("utf-8", "surrogatepass")


def encode_otherwise(rng: Random, data: bytes) -> bytes:
    """The same text in another encoding."""
    text = data.decode("utf-8")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))


JSON: tuple[Mutation, ...] = (change_json,) * 6 + (*BYTES, encode_otherwise)


def in_header(mutation: Mutation) -> Mutation:
    """A mutation of a safetensors file's header alone, its length kept or set right.

    The tensors of such a file have no checksum, so that their bits cannot be held
    against anything.
    """

    def apply(rng: Random, data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = mutation(rng, data[8 : 8 + length])
        size = length if rng.randrange(8) == 0 else len(text)
        return size.to_bytes(8, "little") + text + data[8 + length :]

    apply.__name__ = f"header: {mutation.__name__}"
    return apply


def cut_or_length(rng: Random, data: bytes) -> bytes:
    """Another header length, or another end of the file."""
    kind = rng.randrange(3)
    if kind == 0:
        return truncate(rng, data)
    if kind == 1:
        return append(rng, data)
    number = rng.choice((0, 1, 2**63, 2**64 - 1, 99_000_000, rng.randrange(len(data))))
    return number.to_bytes(8, "little") + data[8:]


SAFETENSORS: tuple[Mutation, ...] = (
    *(in_header(mutation) for mutation in (*BYTES, *(change_json,) * 5)),
    cut_or_length,
)

_SIGNATURES = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}
_SIGNATURES |= {b"PK\x06\x06": 56, b"PK\x06\x07": 20, b"PK\x07\x08": 16}


def change_zip_field(rng: Random, data: bytes) -> bytes:
    """A field of one of the headers set to a wrong or a breaking number."""
    heads = [
        (at, size)
        for mark, size in _SIGNATURES.items()
        for at in range(len(data))
        if data.startswith(mark, at)
    ]
    at, size = rng.choice(heads)
    width = rng.choice((2, 4, 8))
    place = at + rng.randrange(0, size - width + 1, 2)
    limit = 1 << (8 * width)
    old = int.from_bytes(data[place : place + width], "little")
    new = rng.choice((0, 1, limit - 1, old + 1, old - 1, old ^ 8, rng.randrange(limit)))
    changed = (new % limit).to_bytes(width, "little")
    return data[:place] + changed + data[place + width :]


def change_entries(rng: Random, data: bytes) -> bytes:
    """An entry removed, renamed, doubled, cut, grown or added; checksums are right."""
    names, entries = _entries(data)
    name = rng.choice(names)
    kind = rng.randrange(6)
    if kind == 0:
        del entries[names.index(name)]
    elif kind == 1:
        entries[names.index(name)] = (f"{name}x", entries[names.index(name)][1])
    elif kind == 2:
        entries.append((name, rng.randbytes(8)))
    else:
        content = entries[names.index(name)][1]
        changed = (content[:-1], content + b"\0", bytes(len(content)))[kind - 3]
        if kind == 5:
            entries.append(("archive/more", changed))
        else:
            entries[names.index(name)] = (name, changed)
    return _sealed(entries)


def change_opcodes(rng: Random, data: bytes) -> bytes:
    """Opcodes removed, doubled, moved or replaced, or bytes of the pickle changed.

    The archive around it is right, checksums included: what remains is the pickle.
    """
    names, entries = _entries(data)
    at = next(i for i, name in enumerate(names) if name.endswith("data.pkl"))
    code = entries[at][1]
    kind = rng.randrange(6)
    if kind == 0:
        code = rng.choice(BYTES)(rng, code)
    else:
        starts = [place for _, _, place in pickletools.genops(code)] + [len(code)]
        parts = [code[a:b] for a, b in pairwise(starts)]
        one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        if kind == 1:
            del parts[one]
        elif kind == 2:
            parts.insert(other, parts[one])
        elif kind == 3:
            parts[one], parts[other] = parts[other], parts[one]
        elif kind == 4:
            parts[one] = parts[other]
        else:
            parts.insert(one, rng.choice(_OPCODES))
        code = b"".join(parts)
    entries[at] = (entries[at][0], code)
    return _sealed(entries)


_OPCODES = [bytes([n]) for n in range(256)] + [
    b"cos\nsystem\n",
    b"c__builtin__\neval\n",
    b"\x96" + struct.pack("<Q", 2**40),
    b"X" + struct.pack("<I", 2**32 - 1),
    b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"r" + struct.pack("<I", 2**32 - 1),
    b"\x8a\xff" + bytes(255),
    b"(" * 1000,
    b")" + b"\x85" * 5000,
    b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(64)),
]


def _entries(data: bytes) -> tuple[list[str], list[tuple[str, bytes]]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    return [name for name, _ in entries], entries


def _sealed(entries: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a second entry of a name
                archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


TORCH: tuple[Mutation, ...] = (
    *BYTES,
    flip_bits,
    *(change_zip_field,) * 4,
    change_entries,
    *(change_opcodes,) * 4,
)
