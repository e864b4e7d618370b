"""`sixbit doctor` on a CPU and on devices that are faked."""

from __future__ import annotations

import json

from pallas_kernels.triton_backend import calls
from sixbit_jax import cli
from tests.pallas_kernels.test_devices import WITHOUT_TRITON, fake_device


def test_json_lists_every_operation_and_why(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = {entry["operation"]: entry for entry in facts["operations"]}
    assert set(found) == set(WITHOUT_TRITON)
    assert facts["device"]["name"]
    assert "compute_capability" not in facts["device"]
    # Nothing is slow for want of a package where there is no GPU.
    assert facts["help"] == []
    assert "no NVIDIA GPU" in found["attention"]["refused"]["triton"]


def test_a_gpu_without_triton_is_told_what_to_install(monkeypatch, capsys):
    fake_device(monkeypatch, (8, 9), triton=False)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "8.9" in text
    assert f"faster with: {calls.INSTALL}" in text
    (line,) = [x for x in text.splitlines() if "block_stats " in x]
    assert "reference (slow)" in line


def test_a_gpu_with_triton_needs_no_help(monkeypatch, capsys):
    fake_device(monkeypatch, (12, 0))
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "faster with" not in text
    assert "(slow)" not in text
