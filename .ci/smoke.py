"""The installed library, used outside the repository: see `smoke`."""

import importlib.metadata
import importlib.util
from importlib.resources import files
from pathlib import Path

import numpy as np

import sixbit_jax
from sixbit_jax.commands._names import BUNDLED_POLICY

place = Path(sixbit_jax.__file__).parent
assert "site-packages" in place.parts, place
for name in ("tests", "benchmarks"):
    assert importlib.util.find_spec(name) is None, f"{name} was installed"
assert files("sixbit_jax").joinpath("py.typed").is_file()
metadata = importlib.metadata.metadata("sixbit-jax")
assert metadata["License-Expression"] == "Apache-2.0", metadata
assert any(
    file.name == "LICENSE" for file in importlib.metadata.files("sixbit-jax") or ()
)

weights = np.random.default_rng(0).standard_normal((32, 128), np.float32)
stored = sixbit_jax.NVFP4Array.quantize(weights)
error = np.abs(stored.dequantize() - weights).mean() / np.abs(weights).mean()
assert error < 0.2, error
print(f"sixbit-jax {metadata['Version']}: {place}")
assert BUNDLED_POLICY.is_file()
