"""Checkpoints: exact, atomic, of one run."""

from typing import NamedTuple

import numpy as np
import pytest

from sixbit_jax.checkpoint.directory import CheckpointError
from sixbit_jax.tuning.checkpoints import Checkpoints
from tests.sixbit_jax.tuning.runs import equal


class State(NamedTuple):
    values: dict
    history: tuple
    count: np.ndarray


def state(number):
    rng = np.random.default_rng(number)
    return State(
        {
            "a.b.weight": rng.standard_normal((2, 3), np.float32),
            "c": np.float32(number),
        },
        (np.arange(3), None, {"x": np.full((1,), number, np.uint8)}),
        np.int32(number),
    )


def test_the_newest_is_restored_bit_for_bit_and_old_ones_go(tmp_path):
    kept = Checkpoints(tmp_path / "run", {"bits": 3}, keep=2)
    assert kept.restore(state(0)) is None
    for number in (1, 2, 10):
        kept.save(number, state(number))
    assert kept.iterations() == [2, 10]
    found = Checkpoints(tmp_path / "run", {"bits": 3}).restore(state(0))
    assert isinstance(found, State)
    assert equal(found, state(10))
    assert found.history[2]["x"].dtype == np.uint8


def test_what_is_not_complete_does_not_count(tmp_path):
    kept = Checkpoints(tmp_path / "run", {})
    kept.save(5, state(5))
    (tmp_path / "run" / ".iteration_00000009.partial-1").mkdir()
    assert kept.iterations() == [5]
    kept.save(6, state(6))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "iteration_00000005",
        "iteration_00000006",
        "run.json",
    ]


def test_another_run_is_refused(tmp_path):
    Checkpoints(tmp_path / "run", {"bits": 3}).save(1, state(1))
    with pytest.raises(CheckpointError, match=r"another run.*'bits': \(4, 3\)"):
        Checkpoints(tmp_path / "run", {"bits": 4})


def test_other_shapes_and_damage_are_refused(tmp_path):
    kept = Checkpoints(tmp_path / "run", {})
    kept.save(1, state(1))
    other = state(1)._replace(count=np.zeros((4,), np.int32))
    with pytest.raises(CheckpointError, match=r"count: expected \(4,\)"):
        kept.restore(other)
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and file.name != "run.json":
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        kept.restore(state(1))
