"""The API reference holds every public name, once."""

import importlib
import re
from pathlib import Path

import convert
import sixbit_jax
from sixbit_jax import recipes

DOCS = Path(__file__).parents[2] / "docs"
PATHS = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.M)


def test_every_public_name_stands_on_the_page_once():
    names = [path.rpartition(".")[2] for path in PATHS]
    assert len(set(PATHS)) == len(PATHS)
    assert set(sixbit_jax.__all__) - {"recipes"} <= set(names)
    assert set(recipes.__all__) - {"RECIPES"} <= set(names)


def test_what_the_page_names_exists_and_is_documented():
    for path in PATHS:
        module, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        assert thing.__doc__, path
        # What a policy's path names is what the package hands out.
        public = sixbit_jax if path.startswith("sixbit_jax") else convert
        if name in public.__all__:
            assert getattr(public, name) is thing
