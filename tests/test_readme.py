"""The README's Python runs as it is written, on small models and with few steps."""

import re
from pathlib import Path

import pytest

from convert.conversion import convert
from convert.root import convert_root
from tests.golden.pipeline_cases import CASES, write_root

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
STEPS = "num_steps=50"


def run(code: str, **fewer: int) -> dict:
    """Runs a block of the README with other sizes than it names."""
    assert code.count(STEPS) == 1
    words = ", ".join(f"{name}={value}" for name, value in fewer.items())
    names: dict = {}
    exec(compile(code.replace(STEPS, words), "README.md", "exec"), names)
    return names


def test_there_is_an_example_of_a_pipeline_and_one_of_the_sampler():
    assert ["load_pipeline" in code for code in BLOCKS] == [True, False]


def test_the_example_of_a_pipeline_makes_a_video(tmp_path, monkeypatch):
    root = write_root(CASES["wan_2_1"], tmp_path)
    convert_root(root, tmp_path / "cogvideox-5b", weights="nvfp4")
    monkeypatch.chdir(tmp_path)
    made = run(BLOCKS[0], num_steps=2, frames=5, height=32, width=48)
    assert made["video"].frames.shape == (5, 32, 48, 3)


@pytest.mark.slow
def test_the_example_of_the_sampler_samples_the_bundled_model(tmp_path, monkeypatch):
    place = tmp_path / "out" / "demo" / "model-nvfp4"
    place.parent.mkdir(parents=True)
    convert(ROOT / "sixbit_jax" / "demo" / "checkpoint", place, weights="nvfp4")
    (tmp_path / "sixbit_jax").symlink_to(ROOT / "sixbit_jax")
    monkeypatch.chdir(tmp_path)
    made = run(BLOCKS[1], num_steps=2)
    assert made["result"].latents.shape == (1, 13, 3, 32, 32)
    assert made["result"].trace.skip.shape[0] == 2


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_what_the_readme_links_to_is_in_the_repository(link):
    assert (ROOT / link).is_file()


def test_the_readme_is_short_and_names_the_test_command():
    assert len(README.encode()) <= 8192
    assert "make test" in README
