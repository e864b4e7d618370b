"""The kernel benchmark's processes: every case once, and failures that are named."""

import json
import subprocess
import sys

import pytest

from benchmarks.kernels import suite as kernels
from sixbit_jax.benchmark import records


@pytest.mark.slow
def test_parts_cover_every_case_once_and_name_their_failures(tmp_path):
    out = tmp_path / "kernels.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--only", "copy"]
    subprocess.run([*command, "--jobs", "2", "--out", str(out)], check=True)
    found = records.read(out)["records"]
    expected = [(c.op, c.k) for c in kernels.all_cases() if c.op == "copy"]
    assert sorted((r["op"], r["k"]) for r in found) == sorted(expected)
    # There is no GPU here, and no time is made up.
    assert all("expected a GPU, found none" in r["failure"] for r in found)
    assert "median_us" not in json.dumps(found)
