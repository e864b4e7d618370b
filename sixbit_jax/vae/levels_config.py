"""Configuration files of autoencoders whose levels are listed by kind of block."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self


class LevelsConfig:
    """A frozen dataclass, read from a diffusers `config.json` and written to one.

    Its field `block_out_channels` has one width per level.

    Attributes:
      title: what it configures, for errors.
      constants: entries of which one value is supported.
      blocks: entries that name the kind of block of each level, and the one kind.
      ignored: entries without an effect.
    """

    title: ClassVar[str]
    constants: ClassVar[Mapping[str, Any]]
    blocks: ClassVar[Mapping[str, str]]
    ignored: ClassVar[Collection[str]] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the mapping of a diffusers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        known: dict[str, Any] = {f.name: f.default for f in fields(cls)}  # pyrefly: ignore
        problems = []
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key.startswith("_") or key in cls.ignored:
                continue
            if key in cls.constants:
                only = cls.constants[key]
                if value != only:
                    problems.append(f"{key}: expected {only!r}, found {value!r}")
            elif key in cls.blocks:
                kind = cls.blocks[key]
                if others := sorted({str(name) for name in value} - {kind}):
                    problems.append(f"{key}: expected {kind}, found {others}")
            elif key in known:
                chosen[key] = value
            else:
                problems.append(f"{key}: not a key of a {cls.title} config")
        levels = len((known | chosen)["block_out_channels"])
        problems += [
            f"{key}: expected {levels}, one per level, found {len(values[key])}"
            for key in cls.blocks
            if key in values and len(values[key]) != levels
        ]
        if problems:
            raise ValueError(f"{cls.title} config:\n  " + "\n  ".join(problems))
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # pyrefly: ignore
        own["block_out_channels"] = list(own["block_out_channels"])
        levels = len(own["block_out_channels"])
        kinds = {key: [name] * levels for key, name in self.blocks.items()}
        return own | dict(self.constants) | kinds
