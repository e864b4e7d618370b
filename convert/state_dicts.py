"""Files of training programs hold several dicts of tensors: which one is the network.

A state dict at the top is taken. Otherwise the one dict of tensors that there is, at
most two levels down; where there are several (raw and EMA weights, generator and
critic), the caller names one.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import brief, named, several

_DEEPEST = 3
_MOST = 1000


class Chosen(NamedTuple):
    """A state dict out of a file.

    Attributes:
      tensors: by name.
      taken: where it was, as "model" or "module.ema"; "" for the top.
      left: numbers of tensors of the others, by where they are.
    """

    tensors: Mapping[str, TensorInfo]
    taken: str = ""
    left: Mapping[str, int] = {}

    def record(self) -> dict[str, Any]:
        """For headers; empty where there was only one, at the top."""
        if not self.taken and not self.left:
            return {}
        return {"taken": self.taken, "left": dict(self.left)}


def choose(
    found: Any,
    info_of: Callable[[Any], TensorInfo | None],
    *,
    where: object,
    name: str | None = None,
) -> Chosen:
    """The network's state dict.

    Args:
      found: what the file holds.
      info_of: the tensor that a value stands for, or None.
      where: the file, for errors.
      name: the name of the dict to take; None: the only one.

    Raises:
      ConversionError: for no dict of tensors, several without a name, and a name that
        the file does not have; lists those that it has.
    """
    held: dict[str, dict[str, TensorInfo]] = {}
    _collect(found, "", info_of, held)
    top = held.get("", {})
    if len(held) > 1 and not any("." in key for key in top):
        # Not a state dict: the state of a random generator, a step.
        held.pop("", None)
    counts = {place: len(tensors) for place, tensors in held.items()}
    listed = [
        f"{named(place) if place else 'the top level'}: {count:,} tensors, such as "
        f"{named(next(iter(held[place])))}"
        for place, count in counts.items()
    ]
    if name is not None:
        if name not in held:
            raise ConversionError(
                "\n  ".join(
                    [
                        f"{where}: expected the state dict {named(name)}, found",
                        *(several(listed) or ["none"]),
                    ]
                )
            )
    elif len(held) > 1 and "" not in held:
        raise ConversionError(
            "\n  ".join(
                [
                    f"{where}: expected one state dict, found several; name one with "
                    "--state-dict:",
                    *several(listed),
                ]
            )
        )
    if not held:
        keys = list(found) if isinstance(found, dict) else []
        names = ", ".join(brief(key, 40) for key in keys[:8])
        raise ConversionError(
            f"{where}: expected tensors at the top level or in a dict in it; found no "
            f"tensor among {names or 'nothing'}"
        )
    taken = name if name is not None else ("" if "" in held else next(iter(held)))
    left = {place: count for place, count in counts.items() if place != taken}
    return Chosen(held[taken], taken, left)


def _collect(
    value: Any,
    place: str,
    info_of: Callable[[Any], TensorInfo | None],
    held: dict[str, dict[str, TensorInfo]],
) -> None:
    """Adds every dict of tensors in a value, by where it is."""
    if not isinstance(value, dict) or len(held) >= _MOST:
        return
    tensors = {}
    for key, part in value.items():
        if not isinstance(key, str):
            continue
        info = info_of(part)
        if info is not None:
            tensors[key] = info
        elif place.count(".") + bool(place) < _DEEPEST - 1:
            _collect(part, f"{place}.{key}" if place else key, info_of, held)
    if tensors:
        held[place] = tensors


__all__ = ["Chosen", "choose"]
