"""The campaign with a fixed seed, and that it finds what it looks for."""

import json
import time
import warnings
from collections import Counter
from random import Random

import pytest

from tests.fuzz import campaign, mutations
from tests.fuzz.campaign import (
    EQUAL,
    ERROR,
    OTHER,
    RIGHT,
    Target,
    run,
    run_case,
    unreadable,
)
from tests.fuzz.targets import make_targets

SEED = 20_260_101
# Those that take a hundredth of a second, and the directory, that takes a tenth.
CASES, DIRECTORY_CASES = 200, 40


@pytest.fixture(scope="module")
def targets():
    return {target.name: target for target in make_targets()}


NAMES = (
    "safetensors",
    "torch",
    "index",
    "Wan",
    "CogVideoX",
    "CogVideoXDDIM",
    "UniPCMultistep",
    "FlowMatchEulerD",
    "policy",
    "directory",
    "listed",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_mutation_is_a_clean_error_or_changes_nothing(targets, name):
    cases = DIRECTORY_CASES if name == "directory" else CASES
    began = time.perf_counter()
    table = run([targets[name]], seed=SEED, cases=cases)
    assert not table.wrong, f"\n{table}"
    counts = table.counts[name]
    assert counts[ERROR] > cases / 2, f"\n{table}"
    assert sum(counts.values()) == cases
    assert time.perf_counter() - began < 30


def test_every_target_is_tested(targets):
    assert tuple(targets) == NAMES


def _target(read, accounts=None, mutation=mutations.flip_bits):
    options = {} if accounts is None else {"accounts": accounts}
    return Target("t", {"f": b"\0" * 64}, ["f"], [mutation], read, **options)


def _outcome(target, expected=None):
    return run_case(target, 0, 1, expected).outcome


def test_a_silent_difference_fails():
    target = _target(lambda directory: (directory / "f").read_bytes())
    assert _outcome(target, b"\0" * 64) == "silent difference"
    agreed = _target(target.read, lambda directory, result: True)
    assert _outcome(agreed, b"\0" * 64) == OTHER
    table = run([target], seed=1, cases=3)
    assert len(table.wrong) == 3
    assert "silent difference" in str(table)


def test_the_same_result_is_right():
    assert _outcome(_target(lambda directory: 3), 3) == EQUAL


@pytest.mark.parametrize(
    "error",
    [
        TypeError("x"),
        KeyError("x"),
        RecursionError("x"),
        MemoryError(),
        ValueError(),
        ValueError("x" * 2000),
        ValueError("y\n" * 20_000),
        ValueError("\x1b[31m"),
        json.JSONDecodeError("x", "y", 0),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_are_not_for_users_fail(error):
    def read(directory):
        raise error

    assert _outcome(_target(read)) == "error that is not clean"
    assert unreadable(error)
    assert not unreadable(ValueError("f: expected a, found b"))


def test_a_hang_fails(monkeypatch):
    monkeypatch.setattr(campaign, "SECONDS", 0.1)

    def read(directory):
        while True:
            pass

    assert _outcome(_target(read)) == "hang"


def test_memory_fails(monkeypatch):
    monkeypatch.setattr(campaign, "MEMORY", 2**20)
    grown = iter((0, 2**21))
    monkeypatch.setattr(campaign, "_memory", lambda: next(grown))
    assert _outcome(_target(lambda directory: 1), 1) == "memory"


def test_a_second_reader_that_refuses_is_said():
    def accounts(directory, result):
        raise KeyError("x")

    outcome = _outcome(_target(lambda directory: 1, accounts), 2)
    assert outcome == "refused by the second reader only"
    assert outcome not in RIGHT


def test_a_case_is_made_again_by_its_number_and_seed(targets):
    for name in ("safetensors", "torch", "policy"):
        target = targets[name]
        first, second = (campaign.again(target, 5, SEED) for _ in range(2))
        # Temporary names are in the messages.
        assert first.splitlines()[:2] == second.splitlines()[:2]
        assert first.splitlines()[1] != campaign.again(target, 6, SEED).splitlines()[1]


@pytest.mark.parametrize(
    "mutation",
    sorted(
        {*mutations.BYTES, *mutations.JSON, *mutations.TORCH, *mutations.SAFETENSORS},
        key=lambda mutation: mutation.__name__,
    ),
    ids=lambda mutation: mutation.__name__,
)
def test_every_mutation_changes_files(targets, mutation):
    kind = (
        "safetensors"
        if mutation in mutations.SAFETENSORS
        else "torch"
        if mutation in mutations.TORCH
        else "policy"
    )
    target = targets[kind]
    data = target.files[target.mutated[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a second entry of one name
        made = Counter(mutation(Random(n), data) for n in range(60))
    assert len(made) > 3
    assert made[data] < 30


def test_the_table_counts_every_outcome():
    values = iter([3, 3, 4])

    def read(directory):
        value = next(values)
        if value == 4:
            raise ValueError("f: expected 3, found 4")
        return value

    table = run([_target(read)], seed=7, cases=2)
    assert table.counts["t"] == {EQUAL: 1, ERROR: 1}
    assert table.total == 2
    text = str(table)
    assert "seed 7" in text
    assert [outcome for outcome in RIGHT if outcome not in text] == []
