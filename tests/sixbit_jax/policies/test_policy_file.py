"""Policy files: round trips, and what is refused."""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from sixbit_jax.calibration import (
    PolicyFile,
    config_hash,
    load_policy,
    policy_from_file,
    save_policy,
)
from sixbit_jax.policies import (
    BlockGrid,
    ErrorPredictor,
    chain,
    dmpq,
    int8_attention,
    pdr,
    sparse_attention,
    tdc,
)
from sixbit_jax.routes import Route
from sixbit_jax.sparsity import SparseWay
from tests.sixbit_jax.calibration.runs import BLOCKS, SITES, law


@dataclasses.dataclass(frozen=True)
class Config:
    num_layers: int = BLOCKS
    eps: float = 1e-5
    patch_size_t: int | None = None


def model(**changes) -> SimpleNamespace:
    facts = {
        "class_name": "CogVideoXTransformer3DModel",
        "config": Config(),
        "sites": SITES,
        "num_blocks": BLOCKS,
    }
    return SimpleNamespace(**(facts | changes))


def stored(**changes) -> PolicyFile:
    numbers = {
        "predictor": ErrorPredictor(SITES, *law()),
        "threshold": 0.137,
        "tau": 0.21,
        "max_skips": 3,
        "calibration": {"target_bits": 6.0},
    }
    return PolicyFile.for_model(model(), **(numbers | changes))


def test_a_file_gives_back_the_policy(tmp_path):
    path = tmp_path / "policy.json"
    save_policy(stored(), path)
    assert load_policy(path) == stored()
    expected = chain(
        dmpq(ErrorPredictor(SITES, *law()), 0.137), tdc(0.21, max_skips=3), pdr()
    )
    assert policy_from_file(path, model()) == expected
    grid = BlockGrid(BLOCKS, SITES, np.ones((BLOCKS, 4)))
    assert policy_from_file(path, grid) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]


def test_a_file_may_limit_8_bit_attention(tmp_path):
    path = tmp_path / "policy.json"
    save_policy(stored(purify=False, attention_max_gamma=0.3), path)
    expected = chain(
        dmpq(ErrorPredictor(SITES, *law()), 0.137),
        tdc(0.21, max_skips=3),
        int8_attention(0.3),
    )
    assert policy_from_file(path, model()) == expected
    with pytest.raises(ValueError, match="max_gamma"):
        stored(attention_max_gamma=-1.0)


def test_a_file_may_make_attention_sparse(tmp_path):
    path = tmp_path / "policy.json"
    changes = {"sparse_way": "threshold", "sparse_tau": -0.4, "tau": None}
    changes |= {"sparse_dense_blocks": [0, 2], "sparse_max_gamma": 0.3}
    save_policy(stored(purify=False, **changes), path)
    expected = chain(
        dmpq(ErrorPredictor(SITES, *law()), 0.137),
        sparse_attention(-0.4, dense_blocks=[0, 2], max_gamma=0.3),
    )
    assert policy_from_file(path, model()) == expected
    masked = stored(sparse_way="radial", sparse_width=0.5, sparse_dense_last=True)
    save_policy(masked, path)
    assert load_policy(path) == masked
    made = masked.policy()
    assert made.sparse == SparseWay("radial", width=0.5)
    assert made.init(BlockGrid(BLOCKS, SITES, np.ones((BLOCKS, 4))))[-1].dense_last


def test_a_file_of_before_sparse_attention_loads(tmp_path):
    path = tmp_path / "policy.json"
    save_policy(stored(), path)
    content = json.loads(path.read_text())
    old = {k: v for k, v in content.items() if not k.startswith("sparse_")}
    assert len(old) < len(content)
    path.write_text(json.dumps(old))
    assert load_policy(path) == stored()
    assert policy_from_file(path, model()).sparse is None


@pytest.mark.parametrize(
    "change",
    [
        {"sparse_way": "best"},
        {"sparse_width": 0.0},
        {"sparse_dense_steps": 2.0},
        {"sparse_dense_blocks": [BLOCKS]},
        {"sparse_frames": -1},
        {"sparse_way": "threshold", "sparse_order": "snake"},
        {"sparse_tau": "much"},
    ],
)
def test_sparse_attention_that_is_none_is_refused(tmp_path, change):
    path = tmp_path / "policy.json"
    save_policy(stored(sparse_way="threshold"), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"sparse|way|width|dense_steps"):
        load_policy(path)


def test_without_fp4_tensor_cores_the_fastest_stable_route_is_int8(tmp_path):
    path = tmp_path / "policy.json"
    save_policy(stored(purify=False), path)
    fast = policy_from_file(path, model(), stable_route="auto")
    assert fast == policy_from_file(path, model(), stable_route=Route.INT8)
    assert fast.routes == (Route.INT8,)
    kept = policy_from_file(path, model())
    assert set(kept.routes) == {Route.NVFP4, Route.INT8}
    assert fast.skips == kept.skips


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tau": None, "purify": False}, lambda p: chain(dmpq(p, 0.137))),
        (
            {"predictor": None, "threshold": None, "skip_blocks": (1,)},
            lambda _: chain(tdc(0.21, max_skips=3, blocks=[1]), pdr()),
        ),
        (
            {"outlier_ratio": None, "scope": "every_compute", "tau": None},
            lambda p: chain(dmpq(p, 0.137), pdr(None, scope="every_compute")),
        ),
        (
            {"threshold": dict.fromkeys(SITES, 0.5), "tau": None, "purify": False},
            lambda p: chain(dmpq(p, dict.fromkeys(SITES, 0.5))),
        ),
    ],
)
def test_every_part_is_optional(tmp_path, changes, expected):
    path = tmp_path / "policy.json"
    save_policy(stored(**changes), path)
    assert policy_from_file(path, model()) == expected(ErrorPredictor(SITES, *law()))


def test_another_model_is_refused_with_all_differences(tmp_path):
    path = tmp_path / "policy.json"
    save_policy(stored(), path)
    other = model(
        class_name="WanTransformer3DModel",
        config=Config(num_layers=5),
        num_blocks=5,
        sites=(*SITES, "cross_in"),
    )
    with pytest.raises(ValueError, match="another model") as caught:
        policy_from_file(path, other)
    for part in ("policy.json", "class: ", "configuration: ", "blocks: ", "cross_in"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="configuration: "):
        policy_from_file(path, model(config=Config(eps=1e-6)))
    with pytest.raises(
        ValueError, match="blocks: the policy is for 3, the model has 4"
    ):
        policy_from_file(path, BlockGrid(4, SITES, np.ones((4, 4))))


def edited(tmp_path, **changes):
    path = tmp_path / "policy.json"
    save_policy(stored(), path)
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return path


PREDICTOR = {
    "sites": list(SITES),
    "alpha": law()[0].tolist(),
    "beta": law()[1].tolist(),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 1 can be read, found version 2"),
        ({"format": "other"}, "not a policy file"),
        ({"sites": ..., "tua": 1}, r"missing entries \['sites'\].*\['tua'\]"),
        ({"threshold": float("nan")}, "not a policy file: .* the number NaN"),
        ({"tau": float("inf")}, "found the number Infinity"),
        ({"tau": -1.0}, "tdc: tau must be"),
        ({"max_skips": 0}, "max_skips: expected a whole number from 1 .* found 0"),
        ({"threshold": -0.1}, "dmpq: threshold"),
        ({"threshold": None}, "predictor and a threshold, or neither"),
        ({"outlier_ratio": 0.0}, "pdr: outlier_ratio"),
        ({"scope": "always"}, "scope must be"),
        ({"num_blocks": 5}, "model has 5 blocks, the predictor 3"),
        (
            {"num_blocks": "three"},
            "num_blocks: expected a whole number.* found 'three'",
        ),
        ({"skip_blocks": [9]}, r"blocks \[9\] do not exist"),
        ({"predictor": {"alpha": []}}, "predictor: expected"),
        ({"predictor": PREDICTOR | {"sites": ["a", "b", "c", "d"]}}, "are missing"),
        ({"predictor": PREDICTOR | {"alpha": [[1.0]]}}, r"found shape \(1, 1\)"),
        (
            {"predictor": PREDICTOR | {"alpha": [["x"] * 4] * 3}},
            "alpha and beta.*, found",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, changes, message):
    path = edited(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(path)
    assert "policy.json" in str(caught.value)


def test_what_is_not_json_is_refused(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text('{"format": ')
    with pytest.raises(ValueError, match=r"policy.json: not a policy file"):
        load_policy(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="not a policy file"):
        load_policy(path)
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "absent.json")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "policy.json"
    save_policy(stored(), path)
    with pytest.raises(ValueError, match="finite numbers only"):
        save_policy(stored(calibration={"r": float("nan")}), path)
    assert load_policy(path) == stored()
    assert len(list(tmp_path.iterdir())) == 1


def test_config_hash_depends_on_values_only():
    assert config_hash(Config()) == config_hash(
        {"patch_size_t": None, "eps": 1e-5, "num_layers": BLOCKS}
    )
    assert config_hash(Config()) != config_hash(Config(num_layers=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual": "false"}, "residual: expected true or false, found 'false'"),
        ({"purify": 1}, "purify: expected true or false, found 1"),
        ({"num_blocks": 10**9}, "num_blocks: expected a whole number from 1 to 1,024"),
        ({"num_blocks": True}, "num_blocks: expected a whole number"),
        ({"max_skips": 2**40}, "max_skips: expected a whole number from 1 to"),
        ({"tau": "0.1"}, "tau: expected null or a number within float32, found '0.1'"),
        ({"tau": 1e300}, "tau: expected null or a number within float32"),
        ({"tau": True}, "tau: expected null or a number within float32, found True"),
        ({"sites": "attn_in"}, "sites: expected a list of different words"),
        ({"sites": ["a", "a"]}, "sites: expected a list of different words"),
        ({"low": ["NVFP4"]}, "low: expected a word or two"),
        ({"skip_blocks": [0.0]}, "skip_blocks: expected null or a list of blocks"),
        ({"calibration": []}, "calibration: expected an object"),
        ({"importance": [[1.0], [1.0, 2.0]]}, "importance: expected null or a list"),
        ({"threshold": {"attn_in": "x"}}, "threshold: expected null or a number, or"),
        ({"skip_blocks": [1] * 1000}, "blocks must be distinct"),
        ({"x" * 10**6: 1}, "unknown entries"),
    ],
    ids=lambda value: next(iter(value))[:20] if isinstance(value, dict) else "",
)
def test_entries_of_another_type_or_range_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(edited(tmp_path, **changes))
    assert len(str(caught.value)) < 1000


def test_a_fifo_a_huge_file_and_utf16_are_no_policies(tmp_path):
    path = tmp_path / "policy.json"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="expected a regular file, found a FIFO"):
        load_policy(path)
    path.unlink()
    with open(path, "wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match="expected JSON of at most"):
        load_policy(path)
    path.write_bytes('{"format": "sixbit-policy"}'.encode("utf-16"))
    with pytest.raises(ValueError, match="found UTF-16"):
        load_policy(path)
