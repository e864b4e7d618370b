"""Compiles Triton kernels for GPUs that are not there, and reads what ptxas says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_POINTERS = {
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "float32": "*fp32",
    "float8_e4m3fn": "*fp8e4nv",
    "int8": "*i8",
    "uint8": "*u8",
    "int32": "*i32",
    "uint32": "*u32",
}


class Compiled(NamedTuple):
    """What ptxas says of one kernel."""

    kernel: str
    registers: int
    spilled: int
    shared: int
    instructions: str


class Call(NamedTuple):
    """A call of a kernel, with what Triton needs to compile it."""

    kernel: str
    types: list[str]
    constants: dict[str, Any]
    warps: int
    stages: int
    fused: bool


def recorded(monkeypatch, function) -> list[Call]:
    """The kernels that a function calls while it is traced."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels.triton_backend import calls

    found = []

    def call(kernel, arrays, outputs, *, grid, launch, **rest):
        del grid
        fused = rest.pop("fused_multiply_add", False)
        types = [_POINTERS[jnp.dtype(a.dtype).name] for a in (*arrays, *outputs)]
        found.append(Call(kernel, types, rest, *launch, fused))
        return [jnp.zeros(o.shape, o.dtype) for o in outputs]

    monkeypatch.setattr(calls, "call", call)
    # A new function: what was traced for another device is not found again.
    jax.eval_shape(lambda: function())
    return found


def compiled(found: list[Call], capability: int) -> list[Compiled]:
    """Compiles calls in a process of its own, as this one may interpret kernels."""
    pytest.importorskip("triton")
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": cache,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        environment.pop("TRITON_INTERPRET", None)
        done = subprocess.run(
            [sys.executable, "-m", "tests.pallas_kernels.triton_target"],
            input=json.dumps([capability, [call._asdict() for call in found]]),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return [Compiled(*fields) for fields in json.loads(done.stdout)]


def _compile(call: Call, capability: int) -> Compiled:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = call.kernel.split(":")
    package = importlib.import_module(f"pallas_kernels.{module}.triton_kernel")
    function = getattr(package, name)
    arrays = dict(zip(function.arg_names, call.types, strict=False))
    # Every array starts at a multiple of 16 bytes.
    attributes = {(i,): [["tt.divisibility", 16]] for i in range(len(arrays))}
    source = ASTSource(
        fn=function,
        signature={**arrays, **dict.fromkeys(call.constants, "constexpr")},
        constexprs=call.constants,
        attrs=attributes,
    )
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": call.warps,
            "num_stages": call.stages,
            "enable_fp_fusion": call.fused,
        },
    )
    code = kernel.asm["ptx"]
    arch = re.search(r"\.target (\w+)", code)
    assert arch is not None
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newer = tools / "ptxas-blackwell"
    ptxas = newer if capability >= 100 and newer.exists() else tools / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code)
        file.flush()
        said = subprocess.run(
            [ptxas, "-v", f"-arch={arch[1]}", file.name, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None
    assert spilled is not None
    shown = sorted(set(re.findall(r"\b(wgmma|tcgen05|mma)\.\S*", code)))
    return Compiled(
        name,
        int(registers[1]),
        int(spilled[1]),
        kernel.metadata.shared,
        " ".join(shown) + " " + " ".join(re.findall(r"\bmma\.sync\S*", code)[:1]),
    )


def _main() -> None:
    capability, found = json.load(sys.stdin)
    results = [tuple(_compile(Call(**fields), capability)) for fields in found]
    print(json.dumps(results))


if __name__ == "__main__":
    _main()
