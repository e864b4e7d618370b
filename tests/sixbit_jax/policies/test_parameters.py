"""A policy's signature is the one declaration of its parameters."""

import argparse
import dataclasses
import inspect
import json
import re

import pytest

from sixbit_jax import policies
from sixbit_jax.calibration import CalibrationOptions
from sixbit_jax.commands import calibrate
from sixbit_jax.policies import BlockGrid, chain, dmpq, pdr, tdc
from sixbit_jax.policies.parameters import default_of, parameters
from sixbit_jax.policies.policy_file import ENTRIES, PARTS, PolicyFile, load_policy

MODEL = {"model_class": "M", "config_hash": "0", "sites": ["a"], "num_blocks": 2}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.policy.__name__)
def test_every_parameter_is_declared_in_the_signature(part):
    names = inspect.signature(part.policy).parameters
    assert list(parameters(part.policy)) == list(names)
    assert set(part.entries.values()) <= parameters(part.policy).keys()


def test_a_file_that_leaves_entries_out_has_the_defaults_of_the_policies(tmp_path):
    path = tmp_path / "policy.json"
    start = {"format": "sixbit-policy", "version": 1, "tau": 0.25}
    path.write_text(json.dumps(MODEL | start))
    assert load_policy(path).policy() == chain(tdc(0.25), pdr())


def test_a_file_has_the_entries_that_it_had_before():
    assert [f.name for f in dataclasses.fields(PolicyFile)] == [
        *ENTRIES,
        *MODEL,
        "calibration",
    ]
    assert len(ENTRIES) == 30
    assert ENTRIES["low"].default == "NVFP4"
    assert ENTRIES["sparse_max_gamma"].default is None
    assert ENTRIES["together"].default == 1


def test_the_command_line_says_the_defaults_of_the_policies():
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    text = " ".join(parser.format_help().split())
    args = parser.parse_args(["--out", "policy.json"])
    for policy, names in {
        tdc: ("max_skips", "warmup", "together"),
        pdr: ("outlier_ratio",),
        dmpq: ("final_int8",),
    }.items():
        for name in names:
            assert name not in args
            default = default_of(policy, name)
            assert getattr(CalibrationOptions(), name) == default
            option = re.escape("--" + name.replace("_", "-"))
            assert re.search(rf"  ?{option} [^(]*\({default:g}\)", text), name
    given = parser.parse_args(["--out", "p.json", "--together", "all", "--warmup=3"])
    made = calibrate._options(given)
    assert (made.together, made.warmup, made.max_skips) == (None, 3, 2)


def test_a_call_is_held_to_the_declaration():
    with pytest.raises(ValueError, match="tdc: warmup must be at least 2, found 1"):
        policies.tdc(0.1, warmup=1)
    with pytest.raises(TypeError, match="max_skip"):
        policies.tdc(0.1, max_skip=1)
    assert "Skips a block while" in inspect.getdoc(policies.tdc)
    assert policies.tdc(0.1).init(BlockGrid(2, ("a",), [[1.0], [1.0]])).tau == 0.1
