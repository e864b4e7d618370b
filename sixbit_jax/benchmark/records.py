"""The JSON file that every benchmark writes: how it was made, and flat records."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sixbit_jax import files

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "ml_dtypes", "orbax-checkpoint")


def processor() -> str:
    """The processor and its number of cores."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def machine() -> str:
    """The first accelerator that JAX uses, or else the processor."""
    import jax

    device = jax.devices()[0]
    return processor() if device.platform == "cpu" else device.device_kind


def commit() -> str:
    """The checked-out commit, "-dirty" behind it if files differ; or "unknown"."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"


def header(
    command: Sequence[str],
    *,
    commit_id: str | None = None,
    machine_name: str | None = None,
    packages: Sequence[str] = PACKAGES,
) -> dict[str, Any]:
    """The fields that every results file starts with.

    Args:
      command: words of the command line that made the file.
      commit_id: for machines without the repository; None asks git.
      machine_name: None asks JAX.
      packages: distributions whose versions matter; those that are not installed are
        left out.
    """
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit() if commit_id is None else commit_id,
        "machine": machine() if machine_name is None else machine_name,
        "versions": versions,
    }


def write(path: Path, head: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Writes the file in one piece: a reader never sees half of it.

    Infinite numbers and NaN, which JSON does not have, become null.
    """
    content = _finite({**head, "records": list(records)})
    text = json.dumps(content, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
      ValueError: it lacks a field of the header, or its records.
    """
    content = json.loads(path.read_text())
    expected = ("command", "date", "commit", "machine", "versions", "records")
    missing = [name for name in expected if name not in content]
    if missing:
        raise ValueError(f"{path}: expected the fields {expected}, missing {missing}")
    return content
