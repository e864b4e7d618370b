"""The blocks of the page on own pipelines run, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "own-pipeline.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
def test_all_blocks_run_in_order(capsys):
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, PAGE.name, "exec"), names)
    # What the blocks do not assert themselves: a chosen policy, and a pure function
    # that is the call.
    skipped, shape = capsys.readouterr().out.split(" ", 1)
    assert 0 <= float(skipped) < 1
    assert shape.startswith("(4, 2, 2, ")
    whole = names["sixbit_jax"].sample(
        names["model"],
        names["scheduler"],
        names["prompt"],
        latent_shape=(2, 3, 32, 32),
        num_steps=4,
        seed=0,
    )
    assert abs(float(names["value"]) - float(whole.latents.mean())) < 1e-4
