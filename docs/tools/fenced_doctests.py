"""Extension of griffe (mkdocstrings' reader of code): fences around doctests."""

import sys
from pathlib import Path
from typing import Any

import griffe

# griffe loads this file by its path, from wherever mkdocs was started.
sys.path.insert(0, str(Path(__file__).parents[2]))

from docs.tools.doctests import fenced


class FencedDoctests(griffe.Extension):
    """Rewrites each docstring when it has been read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
