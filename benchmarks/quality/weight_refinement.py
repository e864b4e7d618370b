"""What grid refinement (BGR) saves of the quantization error of weights, and its time.

    python -m benchmarks.quality.weight_refinement
    python -m benchmarks.quality.weight_refinement --only time --output FILE.json

Errors: squared error with refined block scales / squared error of round-to-nearest
NVFP4, for every linear of the bundled model as it is stored (rotated or not) and the
other way round, and for synthetic weights; also uniform grids against MinMax, of 4 bits
for the model and of 2 to 8 for synthetic weights. Time: the linears of one block of
CogVideoX-5b with random bf16 weights, from and to memory of JAX's device (GPU or CPU),
multiplied by its number of blocks; the first call of each shape, which compiles, is
counted once. Copies from and to numpy arrays are counted separately; reading and
writing files is not in it (`benchmarks.convert` measures that).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

import sixbit_jax
from convert import convert
from pallas_kernels.numerics import hadamard
from sixbit_jax.benchmark import records
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.formats.uniform_grid import (
    UniformGrid,
    decode_uniform,
    encode_uniform,
    minmax_grid,
)
from sixbit_jax.quantizers.refine_nvfp4 import refine_nvfp4
from sixbit_jax.quantizers.refine_uniform import refined_grid
from sixbit_jax.quantizers.uniform import UniformRecipe

BUNDLED = Path(sixbit_jax.__file__).parent / "demo" / "checkpoint"
RESULTS = Path(__file__).parents[1] / "results" / "cpu" / "weight_refinement.json"
ROTATION = 128
# CogVideoX-5b: shapes of one block and how often each occurs in it; blocks.
BLOCK = {(3072, 3072): 4, (12288, 3072): 1, (3072, 12288): 1, (18432, 512): 2}
BLOCKS = 42


def _squared(difference: jax.Array | np.ndarray) -> np.ndarray:
    return (np.asarray(difference, np.float64) ** 2).sum((-2, -1))


def nvfp4_errors(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of each matrix, to nearest and refined."""
    plain, refined = jax.jit(NVFP4Array.quantize)(w), refine_nvfp4(w)
    return _squared(plain.dequantize() - w), _squared(refined.dequantize() - w)


def uniform_errors(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of each matrix, MinMax and refined grid."""

    def error(grid: UniformGrid) -> np.ndarray:
        return _squared(decode_uniform(encode_uniform(w, grid, bits), grid) - w)

    return error(minmax_grid(w, bits)), error(refined_grid(w, bits))


def record(
    name: str, grid: str, rotation: int, w: np.ndarray, errors: tuple
) -> dict[str, Any]:
    """One line: relative errors of all matrices together, and the range of cuts."""
    plain, refined = (np.atleast_1d(error) for error in errors)
    size = np.atleast_1d(_squared(w))
    return {
        "kind": "error",
        "weights": name,
        "grid": grid,
        "rotation": rotation,
        "matrices": plain.size,
        "error_before": float(plain.sum() / size.sum()),
        "error_after": float(refined.sum() / size.sum()),
        "ratio": float(refined.sum() / plain.sum()),
        "lowest_ratio": float((refined / plain).min()),
        "highest_ratio": float((refined / plain).max()),
    }


def bundled() -> Iterator[tuple[str, np.ndarray]]:
    """The linears of the bundled model that NVFP4 stores, layers stacked."""
    with tempfile.TemporaryDirectory() as scratch:
        convert(BUNDLED, Path(scratch) / "model", dtype="float32")
        model, _ = sixbit_jax.load(Path(scratch) / "model")
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name = ".".join(map(str, path))
        if model.weight_role(name):  # pyrefly: ignore[missing-attribute]
            yield name, np.asarray(leaf.get_value(), np.float32)


def synthetic(shape: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Normal, with 0.3% of the weights 4 to 8 times larger, and Student's t."""
    random = np.random.default_rng(0)
    normal = random.standard_normal(shape)
    large = np.where(random.random(shape) < 0.003, random.uniform(4, 8, shape), 1.0)
    yield "normal", normal.astype(np.float32)
    yield "normal, 0.3% outliers", (normal * large).astype(np.float32)
    yield "Student's t, 3 degrees", random.standard_t(3, shape).astype(np.float32)


def rotated(w: np.ndarray) -> np.ndarray:
    """W H."""
    return np.asarray(hadamard.block_hadamard(jnp.asarray(w), ROTATION))


def timing() -> Iterator[dict[str, Any]]:
    """Seconds of one block's linears and, from them, of all blocks."""
    random = np.random.default_rng(0)
    for name, compress in (
        ("round-to-nearest", jax.jit(NVFP4Array.quantize, static_argnames="rotation")),
        ("grid refinement", refine_nvfp4),
        ("MinMax, uniform 4", UniformRecipe(4, grid="minmax").compress),
        ("grid refinement, uniform 4", UniformRecipe(4, grid="bgr").compress),
        ("grid refinement, uniform 8", UniformRecipe(8, grid="bgr").compress),
    ):
        compiling = seconds = copying = 0.0
        for shape, count in BLOCK.items():
            w = random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            rotation = ROTATION if shape[1] > 512 else 0
            runs, copies = [], []
            for _ in range(4):
                began = time.perf_counter()
                there = jax.block_until_ready(jnp.array(w))
                copied = time.perf_counter()
                stored = jax.block_until_ready(compress(there, rotation=rotation))
                done = time.perf_counter()
                jax.tree.map(np.array, stored)
                copies.append(copied - began + time.perf_counter() - done)
                runs.append(done - copied)
            compiling += runs[0] - min(runs[1:])
            seconds += count * min(runs[1:])
            copying += count * min(copies[1:])
        yield {
            "kind": "time",
            "method": name,
            "weights": "CogVideoX-5b, one block",
            "compile_seconds": compiling,
            "block_seconds": seconds,
            "block_copy_seconds": copying,
            "model_seconds": compiling + BLOCKS * seconds,
            "model_copy_seconds": BLOCKS * copying,
            "machine": records.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "device": jax.devices()[0].device_kind,
        }


def errors() -> Iterator[dict[str, Any]]:
    """Errors of the bundled model's weights and of synthetic ones."""
    for name, w in bundled():
        for rotation in (0, ROTATION):
            x = rotated(w) if rotation else w
            yield record(name, "nvfp4", rotation, x, nvfp4_errors(x))
            yield record(name, "uniform 4", rotation, x, uniform_errors(x, 4))
    for name, w in synthetic((256, 3072)):
        for rotation in (0, ROTATION):
            x = rotated(w) if rotation else w
            yield record(name, "nvfp4", rotation, x, nvfp4_errors(x))
            for bits in (2, 3, 4, 6, 8):
                found = uniform_errors(x, bits)
                yield record(name, f"uniform {bits}", rotation, x, found)


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("errors", "time"), help="default: both")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.only != "time":
        rows.extend(errors())
    if args.only != "errors":
        rows.extend(timing())
    given = [args.output.name if w == str(args.output) else w for w in sys.argv[1:]]
    command = ["python", "-m", "benchmarks.quality.weight_refinement", *given]
    records.write(args.output, records.header(command, commit_id=args.commit), rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
