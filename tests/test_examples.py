"""The examples in docstrings of the most used names run as they are written."""

import doctest
import inspect

import pytest

import sixbit_jax
from convert.root import convert_root
from sixbit_jax.calibration import calibrate
from sixbit_jax.checkpoint.summary import summarize
from sixbit_jax.recipes import recipe_of
from tests.golden.pipeline_cases import CASES, write_root

NAMES = (
    "BlockGrid",
    "CogVideoXDDIM",
    "Execution",
    "FlowMatchEuler",
    "NVFP4Array",
    "Prompt",
    "UniPC",
    "UniformArray",
    "chain",
    "delta_gbs",
    "dmpq",
    "few_step",
    "fixed",
    "load",
    "pdr",
    "policy_from_file",
    "quantize",
    "sample",
    "save",
    "tdc",
)
OTHERS = (recipe_of, summarize)


def run(thing) -> None:
    """Runs the examples of a docstring; there is at least one."""
    thing = inspect.unwrap(thing)
    found = doctest.DocTestFinder(recurse=False).find(thing, globs={})
    assert sum(len(test.examples) for test in found) > 0
    for test in found:
        said: list[str] = []
        doctest.DocTestRunner().run(test, out=said.append)
        assert not said, "".join(said)


@pytest.mark.parametrize(
    "thing",
    [*(getattr(sixbit_jax, name) for name in NAMES), *OTHERS],
    ids=lambda thing: thing.__name__,
)
def test_the_example_runs(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(thing)


@pytest.mark.slow
def test_the_example_of_calibration_runs():
    run(calibrate)


def test_the_example_of_a_pipeline_runs_on_a_tiny_one(tmp_path, monkeypatch):
    convert_root(write_root(CASES["wan_2_1"], tmp_path), tmp_path / "wan2.1")
    monkeypatch.chdir(tmp_path)
    run(sixbit_jax.load_pipeline)
