"""The sampling benchmark on a tiny model: every part runs and the file is complete."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from flax import nnx

from sixbit_jax import cli
from sixbit_jax.benchmark import parts as sampling_parts
from sixbit_jax.benchmark import programs, records, sampling, workers
from sixbit_jax.benchmark import subject as sampling_model
from sixbit_jax.benchmark.plans import SPECS, replayed, skip_plan
from sixbit_jax.benchmark.programs import compile_program
from sixbit_jax.formats import CorrectedArray
from sixbit_jax.policies import BlockGrid
from sixbit_jax.routes import Route
from tests.sixbit_jax.models.small import small_config

FIELDS = {
    "model",
    "frames",
    "height",
    "width",
    "program",
    "skip_fraction",
    "density",
    "step_ms",
    "peak_bytes",
    "weight_bytes",
    "cache_bytes",
}


@pytest.fixture(scope="module")
def tiny() -> sampling_model.Subject:
    config = small_config(num_layers=2, time_embed_dim=32)
    return sampling_model.Subject("tiny", config, (1, 4, 4))


def test_flops_of_five_b_are_those_of_the_roofline():
    subject = sampling_model.subject("5b", frames=None, height=None, width=None)
    linear, attention = sampling_model.forward_flops(subject)
    assert subject.tokens == 17776
    assert linear / 1e12 == pytest.approx(169, abs=1)
    assert attention / 1e12 == pytest.approx(163, abs=1)


def test_nvfp4_weights_of_five_b_are_as_small_as_promised():
    config = sampling_model.CONFIGS["5b"]
    sizes = [
        sampling_model.weight_bytes(
            sampling_model.random_model(config, quantized=quantized, abstract=True)
        )
        for quantized in (False, True)
    ]
    assert sizes[0] == 2 * 5_570_283_072
    assert sizes[0] / sizes[1] > 3.4


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.33, 0.5])
@pytest.mark.parametrize("kind", ["rotating", "same"])
def test_plans_skip_the_fraction_in_every_step_but_the_first(fraction, kind):
    plan = skip_plan(6, 42, fraction, kind)
    assert not plan[0].any()
    assert (plan[1:].sum(1) == round(42 * fraction)).all()
    assert kind == "rotating" or (plan[1:] == plan[1]).all()


def test_plans_skip_whole_steps():
    plan = skip_plan(7, 42, 0.33, "steps")
    assert plan.all(1).sum() == 2
    assert not plan[0].any()
    np.testing.assert_array_equal(plan.any(1), plan.all(1))


def test_program_names_are_distinct():
    assert len({spec.name for spec in SPECS}) == len(SPECS)


@pytest.mark.slow
def test_quantized_program_runs_all_its_plans(tiny):
    name = "int8, 8-bit attention, nvfp4 cache of a third"
    run = compile_program(tiny, name, steps=3, repeats=1, trace=None)
    found = list(run())
    assert [record["skip_fraction"] for record in found] == [0.0, 0.33]
    for record in found:
        assert record.keys() >= FIELDS
        assert record["finite"]
        assert record["step_ms"] > 0
    # One of two blocks, a spare slot, two branches; 4.5 bits and a scale per token.
    values = 4 * tiny.tokens * tiny.config.dim
    assert found[0]["cache_bytes"] == values * 9 // 16 + 4 * 4 * tiny.tokens
    sampling.finish(found)
    json.dumps(found)


def test_a_lora_beside_the_weights_is_in_every_linear_of_the_blocks(tiny):
    plain, beside = (
        sampling_model.random_model(tiny.config, quantized=True, lora_rank=rank)
        for rank in (0, 2)
    )
    found = {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(beside))
        if isinstance(variable.get_value(), CorrectedArray)
    }
    assert len(found) == 6
    for value in found.values():
        assert value.live
        assert value.down.shape[:2] == (tiny.config.num_layers, 2)
    bytes_of = sampling_model.weight_bytes
    extra = sum(4 * (v.down.size + v.up.size + v.factors.size) for v in found.values())
    assert bytes_of(beside) - bytes_of(plain) == extra


@pytest.mark.slow
def test_a_program_with_a_lora_runs(tiny):
    name = "int8, 8-bit attention, LoRA of rank 64 beside"
    (record,) = compile_program(tiny, name, steps=3, repeats=1, trace=None)()
    assert record["lora_rank"] == 64
    assert record["finite"]


@pytest.mark.slow
def test_a_sparse_program_runs_at_each_density_and_fraction(monkeypatch):
    name = "int8, 8-bit attention, sparse"
    # 1,158 tokens, 10 blocks of 128 keys: what a tile always computes is about half.
    config = small_config(num_layers=2, time_embed_dim=32)
    subject = sampling_model.Subject("tiny", config, (8, 24, 24))
    spec = next(spec for spec in SPECS if spec.name == name)
    assert spec.densities == (0.5, 0.35)
    assert spec.fractions[:2] == (0.0, 0.33)
    reachable = dataclasses.replace(spec, densities=(0.9, 0.75), fractions=(0.0, 0.5))
    monkeypatch.setattr(programs, "SPECS", (reachable,))
    monkeypatch.setattr(programs, "_DENSITY_TOLERANCE", 0.03)
    run = compile_program(subject, name, steps=3, repeats=1, trace=None)
    found = list(run())
    assert [(r["target_density"], r["skip_fraction"]) for r in found] == [
        (0.9, 0.0),
        (0.9, 0.5),
        (0.75, 0.0),
        (0.75, 0.5),
    ]
    for record in found:
        assert record.keys() >= FIELDS
        assert record["finite"]
        assert record["density"] == pytest.approx(record["target_density"], abs=0.13)
    assert found[0]["sparse_tau"] < found[2]["sparse_tau"]
    sampling.finish(found)
    json.dumps(found)
    assert "keys" in sampling.shown(found[2])


def test_a_trace_is_replayed_for_another_number_of_blocks(tmp_path):
    skip = np.zeros((3, 2, 2), bool)
    skip[1, 0, 1] = skip[2, 1, 0] = True
    route = np.full((3, 2, 2, 4), Route.INT8)
    np.savez(tmp_path / "t.npz", skip=skip, route=route)
    fraction, policies = replayed(tmp_path / "t.npz", 4, 4)
    assert fraction == pytest.approx(2 / 12)
    grid = BlockGrid(4, tuple("abcd"), np.ones((4, 4)))
    states = [policy.init(grid).skip for policy in policies]
    np.testing.assert_array_equal(states[0][1], [False, False, True, True])
    np.testing.assert_array_equal(states[1][2], [True, True, False, False])
    assert policies[0].routes == (Route.INT8,)


def test_a_trace_without_routes_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", skip=np.zeros((3, 2, 2), bool))
    with pytest.raises(ValueError, match="route"):
        replayed(tmp_path / "t.npz", 4, 4)


def test_parts_are_timed_and_failures_named(tiny):
    chosen = [
        part
        for part in sampling_parts.all_parts(tiny)
        if part.op in ("attention cudnn bf16", "expand qkv", "statistics, int8")
    ]
    found = list(sampling_parts.compile_parts(tiny, chosen)())
    assert len(found) == 4
    for record in found:
        calls = 2 * record["per_block"] * tiny.config.num_layers
        assert record["step_ms"] == pytest.approx(calls * record["op_ms"])


def test_breakdown_adds_up_to_the_step():
    parts = [
        {"part": part, "op": op, "variant": variant, "step_ms": time}
        for part, op, variant, time in (
            ("attention", "a", "int8", 40.0),
            ("attention", "a", "bf16", 80.0),
            ("linears", "l", "int8", 20.0),
            ("quantization", "q", "int8", 4.0),
            ("expansion", "e", "int8", 2.0),
            ("element-wise", "r", "int8", 6.0),
            ("cache", "statistics, bf16", "bf16", 2.0),
            ("cache", "skipped block, bf16", "skip", 1.0),
            ("cache", "skipped block, int8", "skip", 9.0),
        )
    ]
    program = {
        "program": "p",
        "routes": "int8",
        "weights": "nvfp4",
        "attention": "int8",
        "cache_format": "bf16",
        "skip_fraction": 0.5,
        "step_ms": 50.0,
    }
    found = sampling_parts.breakdown(program, parts)
    assert found["attention"] == 20.0
    assert found["cache"] == 1.5
    assert sum(found.values()) == pytest.approx(50.0)


def test_unknown_programs_and_models_are_refused(tmp_path, capsys):
    out = str(tmp_path / "o.json")
    with pytest.raises(ValueError, match="only"):
        sampling.main(["--out", out, "--only", "nonsense"])
    assert cli.main(["bench", "--model", "7b", "--out", out]) == cli.USER_ERROR
    assert "7b" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def test_driver_keeps_records_of_jobs_that_end_well_and_names_failures(
    tmp_path, monkeypatch
):
    script = tmp_path / "job.py"
    script.write_text(
        "import json, sys\n"
        "name = sys.argv[-1]\n"
        "if name == 'parts': sys.exit('no device')\n"
        "print(json.dumps({'ready': 'a machine'}), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(json.dumps({'program': name, 'step_ms': 2.0}), flush=True)\n"
    )
    starting = workers.subprocess.Popen

    def start(command, **options):
        return starting([sys.executable, str(script), *command[3:]], **options)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    out = tmp_path / "out.json"
    chosen = ["--only", "bf16", "--only", "w4a16", "--only", "parts"]
    assert sampling.main(["--out", str(out), "--minutes", "1", *chosen]) == 0
    content = records.read(out)
    assert content["machine"] == "a machine"
    assert "--out out.json" in content["command"]
    assert [r["program"] for r in content["records"] if "step_ms" in r] == [
        "bf16",
        "w4a16",
    ]
    (failed,) = [r for r in content["records"] if "failure" in r]
    assert failed["program"] == "parts"
    assert "no device" in failed["failure"]
