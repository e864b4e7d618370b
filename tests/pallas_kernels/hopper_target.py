"""Compiles functions for an H200 on a machine without one, and reads the result."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

# What XLA needs to know of the device; the CUDA wheels bring ptxas.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 149000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""

_PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
topology = topologies.get_topology_desc(
    platform="cuda", target_config=sys.argv[1], topology="1x1x1"
)
sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
def shape(size, dtype):
    return jax.ShapeDtypeStruct(size, dtype, sharding=sharding)
def compile(function, *arguments):
    jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
"""


def _wheels() -> pathlib.Path | None:
    """The folder of the CUDA tools that pip installed, if it did."""
    for folder in sys.path:
        tools = pathlib.Path(folder) / "nvidia" / "cu13" / "bin"
        if (tools / "ptxas").exists():
            return tools
    return None


def compiled(program: str, folder: pathlib.Path) -> tuple[str, str]:
    """Runs `program` after the prelude above in a process of its own.

    Args:
        program: Python that calls `compile(function, *shapes)` once.
        folder: empty folder for what the compiler writes.

    Returns:
        The report of ptxas and the machine code (empty without a disassembler).
    """
    tools = _wheels()
    if tools is None:
        pytest.skip("the CUDA wheels are not installed")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "MOSAIC_GPU_DUMP_TO": str(folder),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-c", _PROGRAM + program, H200],
        check=True,
        env=environment,
        capture_output=True,
    )
    (report,) = folder.glob("*.ptxas")
    (assembly,) = folder.glob("*.ptx")
    code = ""
    if (tools / "cuobjdump").exists():
        binary = folder / "kernel.cubin"
        subprocess.run(
            [tools / "ptxas", "-arch=sm_90a", assembly, "-o", binary],
            check=True,
            capture_output=True,
        )
        code = subprocess.run(
            [tools / "cuobjdump", "-sass", binary],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    return report.read_text(), code
