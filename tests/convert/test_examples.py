"""The examples in the docstrings of the converter run."""

import doctest
import importlib
import pkgutil

import pytest

import convert

MODULES = sorted(
    f"convert.{info.name}"
    for info in pkgutil.iter_modules(convert.__path__)
    if info.name != "__main__"
)


def _examples(name):
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(module) if test.examples]


WITH_EXAMPLES = [name for name in MODULES if _examples(name)]


def test_the_modules_with_examples_are_found():
    assert {"convert.lora", "convert.prefixes", "convert.rules"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
