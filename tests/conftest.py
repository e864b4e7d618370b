"""Test-wide settings, made before JAX is imported."""

import os
from pathlib import Path

import pytest

# Most of the time of these tests is XLA compiling small programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tests of several devices run on one processor; all others use the first of these.
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

# The Pallas interpreter runs every warpgroup in a thread; one that waits at a barrier
# holds a thread of XLA's pool, which has one per core otherwise.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))

# Compiled programs are shared: between tests, between the processes of a run, and with
# the next run. `make clean` forgets them.
_PROGRAMS = Path(__file__).parents[1] / "build" / "test-programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Every program that XLA compiled for the CPU holds some memory mappings, of which Linux
# allows a process 65,530 by default; beyond that the compiler crashes.
_MANY_MAPPINGS = 30_000
_MAPPINGS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
    """Lets go of compiled programs between modules once there are very many."""
    yield
    if not _MAPPINGS.exists():
        return
    if _MAPPINGS.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        import jax

        jax.clear_caches()
