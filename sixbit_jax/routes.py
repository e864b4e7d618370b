"""The arithmetic that one site uses in one step."""

from enum import IntEnum


class Route(IntEnum):
    """Arithmetic of a site; traced as int32, ordered as `lax.switch` branches."""

    NVFP4 = 0
    INT8 = 1
    BF16 = 2

    @property
    def bits(self) -> int:
        """Width of the activation on this route."""
        return (4, 8, 16)[self]
