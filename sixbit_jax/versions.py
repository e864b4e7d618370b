"""Which versions computed a result; asking never fails."""

import importlib.metadata
import platform
import tomllib
from pathlib import Path

NAME = "sixbit-jax"
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def version_of(name: str) -> str:
    """The version of an installed distribution, or words that say why there is none."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _checkout_version() if name == NAME else "not installed"
    except Exception as error:  # a damaged installation must not cost a result
        return f"unknown ({type(error).__name__})"
    return str(found)


def _checkout_version() -> str:
    """The version of the checkout that this file belongs to."""
    try:
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
        if project["name"] == NAME:
            return f"{project['version']} (checkout, not installed)"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return "not installed"


def versions(*names: str) -> dict[str, str]:
    """Versions of Python, of this library and of other distributions, by name."""
    found = {name: version_of(name) for name in (NAME, *names)}
    return {"python": platform.python_version(), **found}
