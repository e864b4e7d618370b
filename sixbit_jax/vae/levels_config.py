"""Configurations of autoencoders whose levels are listed by kind of block."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

from sixbit_jax.config_schema import (
    Check,
    Schema,
    choice,
    fixed,
    integer,
    number,
    sequence,
)

CHANNELS = integer(1, 4096)
SIDE = integer(1, 65536)
FIELDS: dict[str, Check] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "latent_channels": CHANNELS,
    "block_out_channels": sequence(SIDE, at_most=16),
    "layers_per_block": integer(1, 64),
    "norm_num_groups": CHANNELS,
    "scaling_factor": number(0, 1e6, above=True),
}
"""What all of them have."""


def uneven_groups(config: Any) -> str | None:
    """A relation: widths are multiples of the groups of the norms."""
    groups = config.norm_num_groups
    uneven = [width for width in config.block_out_channels if width % groups]
    if not uneven:
        return None
    return (
        f"block_out_channels: expected multiples of norm_num_groups ({groups}), found "
        f"{uneven}"
    )


def no_power_of_two(name: str, ratio: int, most: int, levels: int) -> str | None:
    """The problem of a ratio that a number of levels cannot have, or None."""
    if ratio & (ratio - 1):
        return f"{name}: expected a power of two, found {ratio}"
    if ratio <= most:
        return None
    return f"{name}: expected at most {most} with {levels} levels, found {ratio}"


class LevelsConfig:
    """A frozen dataclass, read from a diffusers `config.json` and written to one.

    Its field `block_out_channels` has one width per level.

    Attributes:
      schema: what its fields may hold; not the entries below.
      constants: entries of which one value is supported.
      blocks: entries that name the kind of block of each level, and the one kind.
    """

    schema: ClassVar[Schema]
    constants: ClassVar[Mapping[str, Any]]
    blocks: ClassVar[Mapping[str, str]]

    def __post_init__(self):
        self.schema.check(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the mapping of a diffusers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        default = next(
            f.default
            for f in fields(cls)  # pyrefly: ignore
            if f.name == "block_out_channels"
        )
        widths = default
        if isinstance(values, Mapping):
            widths = values.get("block_out_channels", default)
        levels = len(widths) if isinstance(widths, list | tuple) else 0
        others = {key: fixed(value) for key, value in cls.constants.items()} | {
            key: sequence(choice(kind), length=levels)
            for key, kind in cls.blocks.items()
        }
        schema = replace(cls.schema, others={**cls.schema.others, **others})
        return schema.read(values, cls)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # pyrefly: ignore
        own["block_out_channels"] = list(own["block_out_channels"])
        levels = len(own["block_out_channels"])
        kinds = {key: [name] * levels for key, name in self.blocks.items()}
        return own | dict(self.constants) | kinds
