"""Where a command is going to write, checked before its work."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sixbit_jax.files import DestinationError, kind_of, shown


def check_targets(
    targets: Mapping[str, Path | None], *, inputs: Iterable[Path | None] = ()
) -> None:
    """Makes sure, before the work, that files can be written at its end.

    Args:
      targets: files to write, by the option that names them; None is left out.
      inputs: files and directories that are read, and must not be written to.

    Raises:
      DestinationError: if a directory is missing or closed to us, something else than a
        file stands there, or two of them are the same; lists all problems.
    """
    problems = []
    seen: dict[Path, str] = {}
    read = [path.resolve() for path in inputs if path is not None]
    for option, path in targets.items():
        if path is None:
            continue
        parent, text = path.absolute().parent, shown(path)
        kind = kind_of(path)
        if not path.name or path.name == "..":
            problems.append(f"{option}: expected the name of a file, found {text!r}")
            continue
        if not parent.is_dir():
            problems.append(f"{option} {text}: expected an existing directory for it")
        elif not os.access(parent, os.W_OK | os.X_OK):
            problems.append(f"{option} {text}: expected a directory to write to")
        if kind not in (None, "a file"):
            problems.append(
                f"{option} {text}: expected a new file or one to replace, found {kind}"
            )
        place = parent.resolve() / path.name
        if place in seen:
            problems.append(
                f"{option} {text}: expected another file than {seen[place]}, found the "
                "same"
            )
        seen.setdefault(place, option)
        for source in read:
            if place == source or (source in place.parents and kind is not None):
                problems.append(
                    f"{option} {text}: expected a file that is not read, found one of "
                    f"{shown(source)}"
                )
            elif source in parent.resolve().parents:
                problems.append(
                    f"{option} {text}: expected a place outside of what is read, found "
                    f"one in {shown(source)}"
                )
    if problems:
        raise DestinationError("\n  ".join(problems))
