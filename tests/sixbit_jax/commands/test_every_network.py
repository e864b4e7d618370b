"""Every command with every network: it works, or it is refused by name."""

import json
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import sixbit_jax
from sixbit_jax import cli
from sixbit_jax.models import registry
from sixbit_jax.models.hunyuan_video.description import DUAL_SITES
from sixbit_jax.routes import Route
from tests.sixbit_jax.commands.networks import (
    KINDS,
    PROMPTS,
    Kind,
    write,
    write_inputs,
)

QUIET = ["--dtype=float32", "--quiet", "--as-given"]


class Workshop:
    """The files of one kind; each is made by the command that makes it."""

    def __init__(self, kind: Kind, folder: Path):
        self.kind, self.folder = kind, folder
        self.inputs = write_inputs(kind, folder)
        side = kind.side
        size = [f"--frames={kind.frames}", f"--height={side}", f"--width={side}"]
        steps = f"--steps={kind.steps}"
        self.options = [*self.inputs, *size, steps, *QUIET]

    @cached_property
    def ours(self) -> Path:
        return write(self.kind, self.folder / "ours")

    @cached_property
    def diffusers(self) -> Path:
        made = self.folder / "diffusers"
        argv = ["convert", str(self.ours), str(made), "--to-diffusers"]
        assert cli.main(argv) == 0
        return made

    @cached_property
    def nvfp4(self) -> Path:
        made = self.folder / "nvfp4"
        argv = ["convert", str(self.diffusers), str(made), "--weights=nvfp4"]
        assert cli.main(argv) == 0
        return made

    @cached_property
    def policy(self) -> Path:
        made = self.folder / "policy.json"
        argv = ["calibrate", f"--model={self.nvfp4}", f"--out={made}", "--skips=0"]
        assert cli.main([*argv, "--search-prompts=1", *self.options]) == 0
        return made


@pytest.fixture(scope="module")
def workshops(tmp_path_factory):
    def made(name: str) -> Workshop:
        return Workshop(KINDS[name], tmp_path_factory.mktemp(name))

    return cache(made)


@pytest.fixture
def workshop(request, workshops):
    return workshops(request.param)


def with_every_kind(quick=tuple(KINDS)):
    """Every kind; those that are not `quick` by `make test-networks` alone."""
    kinds = [
        pytest.param(name, marks=() if name in quick else pytest.mark.exhaustive)
        for name in KINDS
    ]
    return pytest.mark.parametrize("workshop", kinds, indirect=True)


# XLA and tracing take ten seconds of a core for the programs of each test, four minutes
# for all kinds: by default one kind of every class, and all by `make test-networks`.
CALIBRATED = ("cogvideox1.5-i2v", "wan2.1-i2v", "hunyuanvideo-i2v-concat")
UNTUNED = tuple(name for name, kind in KINDS.items() if kind.tunable is not True)
TUNED = ("cogvideox1.5", "wan2.2-ti2v", *UNTUNED)


def inspected(path, capsys):
    capsys.readouterr()
    assert cli.main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    return [facts] if facts["kind"] != "pair" else list(facts["networks"].values())


def test_every_class_of_the_registry_is_among_the_kinds():
    made = {name: type(kind.make(0)).class_name for name, kind in KINDS.items()}
    assert set(made.values()) == set(registry.ROWS)
    for quick in (CALIBRATED, TUNED):
        assert {made[name] for name in quick} == set(registry.ROWS)


@with_every_kind()
def test_inspect_agrees_before_and_after_conversion(workshop, capsys):
    before = inspected(workshop.diffusers, capsys)
    after = inspected(workshop.nvfp4, capsys)
    assert len(before) == len(after) == 1 + workshop.kind.pair
    for source, ours in zip(before, after, strict=True):
        for key in ("model", "parameters", "blocks", "sites"):
            assert source[key] == ours[key], key
        assert ours["quantization"]["weights"] == "nvfp4"
    assert cli.main(["inspect", str(workshop.nvfp4), "--verify"]) == 0


@with_every_kind()
def test_to_diffusers_and_back_is_the_same_network(workshop, capsys):
    again = workshop.folder / "again"
    assert cli.main(["convert", str(workshop.diffusers), str(again)]) == 0
    first = inspected(workshop.ours, capsys)
    second = inspected(again, capsys)
    for one, two in zip(first, second, strict=True):
        assert one["dtypes"] == two["dtypes"]
    if workshop.kind.pair:
        assert json.loads((again / "pair.json").read_text())["boundary"] == 0.875


@with_every_kind()
def test_sample(workshop, capsys):
    kind, out = workshop.kind, workshop.folder / "latents.safetensors"
    argv = ["sample", str(workshop.ours), f"--out={out}", *workshop.options]
    if kind.pair:
        argv.append("--guidance-2=3")
    assert cli.main(argv) == 0
    assert "no scheduler: taking the published" in capsys.readouterr().err
    latents = load_file(out)["latents"]
    shape = (
        PROMPTS,
        kind.frames,
        kind.description.conditions.latent_channels,
        kind.side,
        kind.side,
    )
    assert latents.shape == shape
    assert np.isfinite(latents).all()
    if "first_frames" in kind.inputs:
        given = load_file(workshop.folder / "first_frames.safetensors")
        np.testing.assert_array_equal(latents[:, :1], given["first_frames"])


@with_every_kind(CALIBRATED)
def test_calibrate(workshop):
    policy = json.loads(workshop.policy.read_text())
    assert policy["calibration"]["activation_bits"] == pytest.approx(6.0, abs=1.0)
    assert policy["calibration"]["recorded_runs"] == PROMPTS
    defaults = workshop.kind.description.defaults
    assert policy["calibration"]["guidance"] == defaults.guidance_scale


@with_every_kind(CALIBRATED)
def test_compare(workshop):
    out = workshop.folder / "report"
    argv = ["compare", "full", str(workshop.policy), f"--model={workshop.ours}"]
    argv += [f"--quantized-model={workshop.nvfp4}", f"--out={out}"]
    assert cli.main([*argv, *workshop.options]) == 0
    full, low = json.loads((out / "report.json").read_text())["records"]
    assert full["activation_bits"] == 16.0
    assert 4.0 <= low["activation_bits"] <= 8.0
    assert 0 < low["latent_rel_l2"] < 2


@pytest.mark.slow
@pytest.mark.parametrize("workshop", ["hunyuanvideo"], indirect=True)
def test_dvd_quant_by_recipe(workshop, capsys):
    folder, recipe = workshop.folder, "--recipe=dvd-quant"
    made, policy = folder / "dvd", folder / "dvd.json"
    assert cli.main(["convert", str(workshop.diffusers), str(made), recipe]) == 0
    for one in inspected(made, capsys):
        assert one["quantization"]["method"] == "grid refinement"
        assert one["quantization"]["weights"] == "uniform4"
    # In few steps no delta gives six bits.
    options = [*workshop.options, "--steps=8"]
    argv = ["calibrate", f"--model={made}", f"--out={policy}", recipe]
    assert cli.main([*argv, "--prompts=1", "--bits=6", *options]) == 0
    out, trace = folder / "dvd.safetensors", folder / "dvd.npz"
    argv = ["sample", str(made), f"--out={out}", f"--policy={policy}", recipe]
    assert cli.main([*argv, f"--trace={trace}", *options]) == 0
    assert np.isfinite(load_file(out)["latents"]).all()
    with np.load(trace) as found:
        # Of the dual blocks; sites of the other kind have no route.
        routes = found["route"][..., :2, : len(DUAL_SITES)]
    assert set(np.unique(routes)) == {Route.ARQ4, Route.ARQ8}


@with_every_kind(TUNED)
def test_tune(workshop, capsys):
    kind, out = workshop.kind, workshop.folder / "tuned"
    options = [o for o in workshop.options if not _names_a_condition(o)]
    argv = ["tune", f"--model={workshop.ours}", f"--out={out}", *options]
    argv += ["--iterations=2", "--batch=1"]
    if kind.tunable is not True:
        assert cli.main(argv) == cli.USER_ERROR
        assert kind.tunable in capsys.readouterr().err
        assert not out.exists()
        return
    assert cli.main(argv) == 0
    _, header = sixbit_jax.load(out / "model")
    assert header.quantization["method"] == "q_vdit"
    with np.load(out / "losses.npz") as losses:
        assert losses["loss"].shape == (2,)
        assert np.isfinite(losses["loss"]).all()


def _names_a_condition(option):
    return option.startswith(("--image", "--first"))
