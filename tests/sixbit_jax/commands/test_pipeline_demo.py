"""`sixbit demo --prompt`: what it refuses, and what it says about words."""

from pathlib import Path

import pytest

from sixbit_jax.cli import main
from sixbit_jax.commands._pipeline_demo import name_unknown_words


def test_unknown_words_are_named_with_those_that_are_known(capsys):
    notes = name_unknown_words(["a fluffy red ball moves left", "a blue cube rises"])
    assert len(notes) == 1
    assert "does not know fluffy;" in notes[0]
    told = capsys.readouterr().err
    assert notes[0] in told
    assert "It knows:" in told
    assert "crimson" in told


def test_known_words_are_not_commented_on(capsys):
    assert name_unknown_words(["a blue cube rises"]) == ()
    assert capsys.readouterr().err == ""


def test_a_place_without_a_pipeline_is_named(tmp_path: Path, capsys):
    out = tmp_path / "out"
    options = ["--prompt", "a red ball", "--pipeline", str(tmp_path / "none")]
    with pytest.raises(SystemExit) as failed:
        raise SystemExit(main(["demo", *options, "--out", str(out)]))
    assert failed.value.code != 0
    assert "expected a diffusers root with text encoder" in capsys.readouterr().err
    assert not out.exists()


def test_captions_and_prompts_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--prompt", "a red ball", "--captions", "a red circle"])
    assert "not allowed with" in capsys.readouterr().err
