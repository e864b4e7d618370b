from pathlib import Path

import numpy as np
import pytest

from convert.cogvideox import TABLE
from convert.errors import ConversionError
from convert.rules import Rule, RuleTable, Transform, collapse
from convert.safetensors_file import TensorInfo
from sixbit_jax.checkpoint import parameter_shapes
from tests.golden import cases

CONFIGS = (
    "2b_f1_8x12_t10",
    "5b_f1_12x8_t7",
    "5b_i2v_f1_8x12_t10",
    "1_5_i2v_f3_8x12_t10",
)


def _tensor(*shape, dtype="f4"):
    return TensorInfo(np.dtype(dtype), shape, Path("x.safetensors"), 0)


def test_a_template_renames_in_both_directions():
    rule = Rule("net.{layer}.{proj:to_q|to_k}.0.{leaf}", "blocks.{layer}.{proj}.{leaf}")
    assert rule.to_target("net.12.to_k.0.bias") == "blocks.12.to_k.bias"
    assert rule.to_source("blocks.12.to_k.bias") == "net.12.to_k.0.bias"
    for key in ("net.1.to_v.0.bias", "net.1.to_q.0.scale", "net1.to_q.0.bias", "x"):
        assert rule.to_target(key) is None


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cogvideox_table_names_exactly_the_keys_of_diffusers(name):
    case = cases.load(name)
    table_keys = {}
    for path, shape in parameter_shapes(TABLE.model_class, case.config).items():
        stack, _, leaf = path.partition(".")
        if stack in TABLE.stacks:
            for layer in range(shape[0]):
                full = f"{stack}.{layer}.{leaf}"
                table_keys[TABLE.source_of(full)[0]] = (full, tuple(shape[1:]))
        else:
            table_keys[TABLE.source_of(path)[0]] = (path, tuple(shape))
    assert {k: s for k, (_, s) in table_keys.items()} == {
        k: tuple(s) for k, s in case.shapes.items()
    }
    for key, (path, _) in table_keys.items():
        assert [t for r in TABLE.rules if (t := r.to_target(key))] == [path]


def test_all_problems_of_the_keys_are_listed_at_once():
    transposed = Transform(np.transpose, np.transpose, lambda shape: shape[::-1])
    table = RuleTable(
        "Net",
        ("b",),
        (
            Rule("b.{layer}.{leaf}", "b.{layer}.{leaf}"),
            Rule("t", "t", transform=transposed),
        ),
        ignored=("sidecar.*",),
    )
    shapes = {f"b.{i}.weight": (2, 2) for i in range(5)} | {"t": (2, 3)}
    tensors = {
        "b.0.weight": _tensor(2, 2),
        "b.3.weight": _tensor(4),
        "b.4.weight": _tensor(2, 2, dtype="i4"),
        "t": _tensor(2, 3),
        "extra.weight": _tensor(1),
        "sidecar.x": _tensor(1),
    }
    with pytest.raises(ConversionError) as error:
        table.assign(tensors, shapes)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "b.[1-2].weight" in lines
    assert "extra.weight" in lines
    assert "b.3.weight: expected [2, 2], found [4]" in lines
    assert "t: expected [3, 2], found [2, 3]" in lines
    assert "b.4.weight: int32" in lines
    assert "sidecar" not in str(error.value)


def test_ignored_keys_are_reported_and_never_hide_a_parameter():
    table = RuleTable("Net", (), (Rule("a", "a"),), ignored=("a", "s.*"))
    assigned, ignored = table.assign({"a": _tensor(1), "s.1": _tensor(9)}, {"a": (1,)})
    assert list(assigned) == ["a"]
    assert ignored == ["s.1"]
    with pytest.raises(ConversionError, match="missing"):
        table.assign({"s.1": _tensor(9)}, {"a": (1,)})


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ConversionError, match=r"found none for nowhere.weight"):
        TABLE.source_of("nowhere.weight")


def test_collapse_keeps_every_number():
    keys = [f"b.{i}.w" for i in (0, 1, 2, 5)] + ["b.7.x", "plain"]
    assert collapse(keys) == ["b.7.x", "b.[0-2,5].w", "plain"]
