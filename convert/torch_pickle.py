"""Pickles of `torch.save`, run by a machine that knows nothing but tensors.

Python's unpickler calls what a file names, hashes what a file nests and allocates what
a file asks for. This one has the opcodes that torch writes (protocol 2) and no other,
holds no more than the file does, and gives every other name an error: nothing is
imported, called or hashed but the few constructors of its caller.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sixbit_jax.reading.messages import brief

# A tensor takes 25 opcodes; state dicts have some thousand tensors.
_MOST_OPCODES = 1_000_000
# The pickler puts 1,000 entries of a dict on the stack before it sets them.
_HIGHEST_STACK = 100_000
_DEEPEST = 64
_LONGEST_NAME = 256
_MARK = object()


class Refused(Exception):
    """A name in the pickle that is not one of those that tensors need."""


class Damaged(Exception):
    """Bytes that torch does not write."""


class Dict(dict):
    """A dict, or an OrderedDict, of the pickle. Keys are words and numbers.

    Attributes:
      depth: levels of containers in it, itself included.
      held: whether it is in another container, after which it does not change.
    """

    __slots__ = ("depth", "held")

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.held = 1, False


class Dropped:
    """A list of the pickle, or what is in one: counted, not kept."""

    __slots__ = ("depth", "held")

    def __init__(self, depth: int = 1) -> None:
        self.depth, self.held = depth, False


class Tuple(tuple):
    """A tuple of the pickle; see `Dict` for its depth."""

    depth = 1


class Call:
    """A name that may be called, with the number of arguments that it takes."""

    __slots__ = ("least", "most", "run")

    def __init__(self, run: Callable[..., Any], least: int, most: int):
        self.run, self.least, self.most = run, least, most


class Machine:
    """Runs one pickle.

    Args:
      code: all bytes of it.
      names: what "module.name" stands for: a `Call`, or a value.
      storage: what a persistent id stands for.
    """

    def __init__(
        self,
        code: bytes,
        names: Mapping[str, Any],
        storage: Callable[[Any], Any],
    ):
        self._code, self._at = code, 0
        self._names, self._storage = names, storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object of the pickle.

        Raises:
          Damaged: it is none, or not as torch writes it.
          Refused: it names what no tensor needs.
        """
        if self._code[:2] != b"\x80\x02":
            found = self._code[:2]
            kind = f"protocol {found[1]}" if found[:1] == b"\x80" and found[1:] else ""
            raise Damaged(
                f"{kind or brief(found)} at its beginning (expected protocol 2; other "
                "pickles have to be saved again with torch.save's own)"
            )
        self._at = 2
        for _ in range(_MOST_OPCODES):
            opcode = self._take(1)
            if opcode == b".":
                return self._result()
            run = _OPCODES.get(opcode)
            if run is None:
                raise Damaged(
                    f"opcode {brief(opcode)} at byte {self._at - 1:,}, which "
                    "torch.save does not write"
                )
            run(self)
            if len(self._stack) > _HIGHEST_STACK:
                raise Damaged(f"more than {_HIGHEST_STACK:,} values on its stack")
        raise Damaged(f"more than {_MOST_OPCODES:,} opcodes")

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._marks or self._at != len(self._code):
            raise Damaged(
                f"an end at byte {self._at:,} of {len(self._code):,} with "
                f"{len(self._stack):,} values on its stack (expected 1)"
            )
        return self._pop()

    def _take(self, size: int) -> bytes:
        part = self._code[self._at : self._at + size]
        if len(part) != size:
            raise Damaged(
                f"{size:,} bytes at byte {self._at:,} of {len(self._code):,}: truncated"
            )
        self._at += size
        return part

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self._code.find(b"\n", self._at, self._at + _LONGEST_NAME)
        if end < 0:
            raise Damaged(f"a name without an end at byte {self._at:,}")
        line = self._code[self._at : end]
        self._at = end + 1
        return self._text(line)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"text that is not UTF-8: {brief(data)}") from error

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Damaged(f"an empty stack at byte {self._at - 1:,}")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _from_mark(self) -> list[Any]:
        if not self._marks:
            raise Damaged(f"no mark at byte {self._at - 1:,}")
        first = self._marks.pop()
        values = self._stack[first:]
        del self._stack[first:]
        return values

    def _hold(self, values: list[Any]) -> int:
        """Depth of a container of these, which are in it from now on."""
        deepest = 0
        for value in values:
            if isinstance(value, Dict | Dropped):
                value.held = True
            deepest = max(deepest, getattr(value, "depth", 0))
        if deepest >= _DEEPEST:
            raise Damaged(f"values nested deeper than {_DEEPEST} levels")
        return deepest + 1

    # Opcodes, by the names that `pickle` gives them.

    def _mark(self) -> None:
        if len(self._marks) >= _DEEPEST:
            raise Damaged(f"values nested deeper than {_DEEPEST} levels")
        self._marks.append(len(self._stack))

    def _global(self) -> None:
        name = f"{self._line()}.{self._line()}"
        if name not in self._names:
            raise Refused(brief(name).strip("'"))
        self._push(self._names[name])

    def _tuple(self, size: int | None = None) -> None:
        if size is None:
            values = self._from_mark()
        else:
            values = [self._pop() for _ in range(size)][::-1]
        made = Tuple(values)
        made.depth = self._hold(values)
        self._push(made)

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._changeable(Dict, pairs)
        if len(pairs) % 2:
            raise Damaged("a key without a value")
        keys, values = pairs[::2], pairs[1::2]
        for key in keys:
            # Not `isinstance`: nothing else is hashed.
            if type(key) not in (str, int, bool, float, type(None)):
                raise Damaged(f"{brief(key)} as the key of a dict")
        target.depth = max(target.depth, self._hold(values))
        for key, value in zip(keys, values, strict=True):
            if key in target:
                raise Damaged(f"the key {brief(key)} twice in one dict")
            target[key] = value

    def _append(self, values: list[Any]) -> None:
        target = self._changeable(Dropped, values)
        target.depth = max(target.depth, self._hold(values))

    def _changeable(self, kind: type, values: list[Any]) -> Any:
        target = self._top()
        inside = any(value is target for value in values)
        if type(target) is not kind or target.held or inside:
            raise Damaged(
                f"a change of {brief(target)} (expected a {kind.__name__.lower()} that "
                "is in no other)"
            )
        return target

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Call) or not isinstance(arguments, Tuple):
            raise Damaged(f"a call of {brief(function)}")
        if not function.least <= len(arguments) <= function.most:
            raise Damaged(
                f"a call with {len(arguments)} arguments (expected {function.least} "
                f"to {function.most})"
            )
        self._push(function.run(*arguments))

    def _build(self) -> None:
        """Attributes of an OrderedDict (`_metadata`): not needed, dropped."""
        state = self._pop()
        self._hold([state])
        self._changeable(Dict, [state])
        if type(state) is not Dict:
            raise Damaged(f"{brief(state)} as the attributes of a dict")

    def _persistent(self) -> None:
        self._push(self._storage(self._pop()))

    def _get(self, size: int) -> None:
        number = self._number(size)
        if number not in self._memo:
            raise Damaged(f"the memo's {number:,}, which was never put there")
        self._push(self._memo[number])

    def _put(self, size: int) -> None:
        self._memo[self._number(size)] = self._top()

    def _integer(self, size: int, signed: bool = False) -> None:
        self._push(int.from_bytes(self._take(size), "little", signed=signed))


def _long(machine: Machine) -> None:
    data = machine._take(machine._number(1))
    machine._push(int.from_bytes(data, "little", signed=True))


def _unicode(machine: Machine) -> None:
    machine._push(machine._text(machine._take(machine._number(4))))


def _float(machine: Machine) -> None:
    machine._push(struct.unpack(">d", machine._take(8))[0])


_OPCODES: Mapping[bytes, Callable[[Machine], None]] = {
    b"(": Machine._mark,
    b")": lambda m: m._tuple(0),
    b"t": Machine._tuple,
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"}": lambda m: m._push(Dict()),
    b"]": lambda m: m._push(Dropped()),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._integer(4, signed=True),
    b"K": lambda m: m._integer(1),
    b"M": lambda m: m._integer(2),
    b"\x8a": _long,
    b"G": _float,
    b"X": _unicode,
    b"c": Machine._global,
    b"R": Machine._reduce,
    b"b": Machine._build,
    b"s": Machine._set_item,
    b"u": lambda m: m._set_items(m._from_mark()),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._from_mark()),
    b"Q": Machine._persistent,
    b"q": lambda m: m._put(1),
    b"r": lambda m: m._put(4),
    b"h": lambda m: m._get(1),
    b"j": lambda m: m._get(4),
}


def refuse(what: str) -> NoReturn:
    """For constructors: an argument that does not fit."""
    raise Damaged(what)


__all__ = [
    "Call",
    "Damaged",
    "Dict",
    "Dropped",
    "Machine",
    "Refused",
    "Tuple",
    "refuse",
]
