"""What other programs put before or between a network's own key names.

Stripped in one place and for every layout, before anything looks at the names.
"""

import re
from collections.abc import Mapping

from convert.errors import ConversionError
from sixbit_jax.reading.messages import named, several

# Of the object that held the network.
_OUTER = re.compile(r"(?:(?:model|diffusion_model|module|pipe\.dit)\.)+")
# Of wrappers around any module: compiled, sharded, recomputed in the backward pass.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def strip_wrappers(name: str) -> str:
    """A name without those of wrappers around its modules."""
    return _WRAPPERS.sub("", name)


def strip_prefixes[T](tensors: Mapping[str, T]) -> dict[str, T]:
    """The same tensors under the network's own names.

    >>> strip_prefixes({"module._orig_mod.blocks.0.norm3.weight": 1})
    {'blocks.0.norm3.weight': 1}

    Args:
      tensors: by the names of the file.

    Raises:
      ConversionError: lists names that become equal.
    """
    found: dict[str, T] = {}
    first: dict[str, str] = {}
    problems = []
    for key, info in tensors.items():
        # A wrapper may be around the object and around the network in it.
        inner = strip_wrappers(key)
        outer = _OUTER.match(inner)
        name = inner if outer is None else inner[outer.end() :]
        if name in found:
            problems.append(f"{named(first[name])} and {named(key)}: both are {name}")
        found[name], first[name] = info, key
    if problems:
        raise ConversionError(
            "\n  ".join(
                [
                    "expected one network, found keys that differ only in the prefix:",
                    *several(problems),
                ]
            )
        )
    return found


__all__ = ["strip_prefixes", "strip_wrappers"]
