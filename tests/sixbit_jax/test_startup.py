"""Importing and asking for help load neither JAX nor NumPy."""

import importlib
import json
import subprocess
import sys

import pytest

import convert
import sixbit_jax
from sixbit_jax import cli
from sixbit_jax.commands import _names

HEAVY = ("jax", "jaxlib", "numpy", "flax", "orbax", "matplotlib", "PIL", "rich")
REPORT = f"""
import json, sys
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
HELP = (
    """
import contextlib, io, sys
from sixbit_jax import cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    cli.main(sys.argv[1:])
assert "usage: sixbit" in out.getvalue()
"""
    + REPORT
)


def loaded(code, *words):
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("package", ["sixbit_jax", "convert", "sixbit_jax.files"])
def test_importing_a_package_is_cheap(package):
    assert loaded(f"import {package}\n{REPORT}") == []


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_is_cheap(command):
    assert loaded(HELP, *command.split(), "--help") == []


@pytest.mark.parametrize("package", [sixbit_jax, convert])
def test_every_public_name_loads_and_is_listed(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    assert len(set(package.__all__)) == len(package.__all__)


def test_public_names_are_those_of_their_modules():
    from sixbit_jax.policies import chain
    from sixbit_jax.sampling.api import sample

    assert sixbit_jax.sample is sample
    assert sixbit_jax.chain is chain


def test_modules_of_the_package_are_attributes_and_other_names_are_not():
    assert sixbit_jax.metrics is importlib.import_module("sixbit_jax.metrics")
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = sixbit_jax.smaple
    with pytest.raises(AttributeError, match="no attribute 'covnert'"):
        _ = convert.covnert


def test_names_for_help_are_those_of_the_libraries():
    from convert import choices, nvfp4_dialects
    from sixbit_jax.recipes import RECIPES

    assert tuple(RECIPES) == _names.RECIPES
    assert nvfp4_dialects.CHOICES == choices.DIALECTS
    assert _names.BUNDLED_CHECKPOINT.is_dir()
    assert _names.BUNDLED_POLICY.is_file()
