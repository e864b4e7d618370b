"""How the parts of a run say how far they are, and how they are stopped."""

from collections.abc import Callable

Tell = Callable[[str, int, int], bool | None]
"""(part, done, all) of "text", "picture", "sampling" and "vae"; true ends the run."""


class Stopped(KeyboardInterrupt):
    """A callback or Ctrl-C ended a run before its video was complete."""


def nothing(part: str, done: int, count: int) -> None:
    """Says nothing."""
    del part, done, count


__all__ = ["Stopped", "Tell", "nothing"]
