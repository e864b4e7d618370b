import importlib.metadata

import pytest

from sixbit_jax import versions


def test_versions_are_those_that_are_installed():
    found = versions.versions("jax", "numpy")
    assert found["jax"] == importlib.metadata.version("jax")
    assert set(found) == {"python", "sixbit-jax", "jax", "numpy"}


def test_a_checkout_that_is_not_installed_has_the_version_of_its_project(monkeypatch):
    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", fail)
    found = versions.versions("jax")
    assert found["sixbit-jax"].endswith("(checkout, not installed)")
    assert found["sixbit-jax"][0].isdigit()
    assert found["jax"] == "not installed"


@pytest.mark.parametrize("text", [None, "", "[project", "[project]\nname = 'other'"])
def test_without_a_project_the_version_is_said_to_be_unknown(
    tmp_path, monkeypatch, text
):
    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", fail)
    monkeypatch.setattr(versions, "_PROJECT", tmp_path / "pyproject.toml")
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    assert versions.version_of("sixbit-jax") == "not installed"


def test_a_damaged_installation_costs_no_result(monkeypatch):
    def fail(name):
        raise KeyError("Version")

    monkeypatch.setattr(importlib.metadata, "version", fail)
    assert versions.version_of("sixbit-jax") == "unknown (KeyError)"
