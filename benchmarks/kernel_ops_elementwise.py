"""Checks and times the row kernels against their references on one GPU.

    python -m benchmarks.kernel_ops_elementwise --out FILE

Times are wall-clock medians of a jitted program that runs the op once on each of
several inputs, so that launches overlap and no input stays in the L2 cache.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantize_int8 import mosaic_gpu as int8_kernel
from pallas_kernels.quantize_int8 import reference as int8_reference
from pallas_kernels.quantize_nvfp4 import mosaic_gpu as nvfp4_kernel
from pallas_kernels.quantize_nvfp4 import reference as nvfp4_reference
from pallas_kernels.row_tiles import RowTiling, choose_tiling
from pallas_kernels.row_tiles.site import SiteInput

TOKENS = 17_776
MODEL_CHANNELS = (1536, 1920, 3072, 5120, 7680, 8960, 12288, 13824, 14336)
ROTATING_BYTES = 600e6  # ten times the L2 cache


def random_site(key: jax.Array, shape: tuple[int, ...], kind: str) -> SiteInput:
    """A site of the given kind: "plain", "gelu" or "norm" (with modulation)."""
    keys = jax.random.split(key, 7)
    x = jax.random.normal(keys[0], shape, jnp.bfloat16)
    if kind == "plain":
        return SiteInput(x)
    if kind == "gelu":
        return SiteInput(x, activation="gelu_tanh")
    k = shape[-1:]
    modulation = [
        jax.random.normal(key, shape[:-2] + k, jnp.bfloat16) * 0.5 for key in keys[1:5]
    ]
    return SiteInput(
        x,
        norm="layer",
        norm_weight=jax.random.normal(keys[5], k, jnp.bfloat16),
        norm_bias=jax.random.normal(keys[6], k, jnp.bfloat16),
        shift=modulation[0],
        scale=modulation[1],
        text_shift=modulation[2],
        text_scale=modulation[3],
        text_rows=min(226, shape[-2] // 2),
    )


def with_x(site: SiteInput, x: jax.Array) -> SiteInput:
    """The site with another input."""
    fields = {**site.__dict__, "x": x}
    return SiteInput(**fields)


def check(
    key: jax.Array, shape: tuple[int, ...], kind: str, *, full: bool
) -> dict[str, float]:
    """Largest disagreements of the kernels with the references.

    Without `full` only those of quantize_int8.
    """
    site = random_site(key, shape, kind)
    result = {}
    got = jax.jit(
        lambda x: int8_kernel.quantize_int8(with_x(site, x), with_stats=True)
    )(site.x)
    want = jax.jit(
        lambda x: int8_reference.quantize_int8(with_x(site, x), with_stats=True)
    )(site.x)
    difference = np.abs(np.asarray(got[0], np.int32) - np.asarray(want[0], np.int32))
    result["int8 off by one"] = float((difference == 1).mean())
    result["int8 worst"] = float(difference.max())
    result["int8 scale"] = float(jnp.max(jnp.abs(got[1] / want[1] - 1)))
    result["outlier"] = float(jnp.abs(got[2] / want[2] - 1))
    tensor_scales = {"given": jnp.float32(2e-3), "measured": None} if full else {}
    for name, tensor_scale in tensor_scales.items():
        got = jax.jit(
            lambda x, t=tensor_scale: nvfp4_kernel.quantize_nvfp4(
                with_x(site, x), t, with_stats=True
            )
        )(site.x)
        want = jax.jit(
            lambda x, t=tensor_scale: nvfp4_reference.quantize_nvfp4(
                with_x(site, x), t, with_stats=True
            )
        )(site.x)
        codes, wanted = np.asarray(got[0]), np.asarray(want[0])
        result[f"nvfp4 {name} codes differ"] = float((codes != wanted).mean())
        scales = np.asarray(got[1]).view(np.uint8), np.asarray(want[1]).view(np.uint8)
        result[f"nvfp4 {name} scales differ"] = float((scales[0] != scales[1]).mean())
        result[f"nvfp4 {name} tensor scale"] = float(jnp.abs(got[2] / want[2] - 1))
    return result


def time_us(function: Callable, inputs: Sequence[jax.Array], rounds: int = 7) -> float:
    """Median microseconds of one call of the function."""
    once = jax.jit(function)  # traced and lowered once for all inputs
    program = jax.jit(lambda xs: [once(x) for x in xs])
    jax.block_until_ready(program(list(inputs)))
    repeats = max(1, 24 // len(inputs))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            result = program(list(inputs))
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / (repeats * len(inputs)))
    return statistics.median(times) * 1e6


def rotating(key: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """Enough inputs that none is in the L2 cache when it is read again."""
    count = max(2, int(ROTATING_BYTES / (np.prod(shape) * 2)))
    keys = jax.random.split(key, count)
    return [jax.random.normal(k, shape, jnp.bfloat16) for k in keys]


def tilings(k: int) -> list[RowTiling]:
    """Candidates around the default tiling."""
    default = choose_tiling(k)
    rows = {default.rows, max(1, default.rows // 2), max(1, default.rows // 4)}
    found = []
    for r in sorted(rows, reverse=True):
        for buffers in (2, 3):
            for blocks in (1, 2, 3):
                tiling = RowTiling(r, k, buffers, blocks)
                tile_bytes = r * k * (2 * buffers + 2)
                threads = tiling.warpgroups * 128 * blocks
                if tile_bytes * blocks <= 215_000 and threads <= 512:
                    found.append(tiling)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tune", action="store_true", help="time many tilings")
    parser.add_argument("--seconds", type=float, default=150.0, help="budget")
    options = parser.parse_args()
    began = time.perf_counter()
    key = jax.random.key(0)
    report: dict = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "checks": {},
        "times": [],
    }

    def save() -> None:
        options.out.write_text(json.dumps(report, indent=1))

    shapes = [
        ((2, 501, 3072), "norm"),
        ((1001, 12288), "gelu"),
        ((17_776, 3072), "norm"),
    ]
    shapes += [((77, k), "plain") for k in MODEL_CHANNELS]
    shapes += [((1, 128), "norm"), ((5, 1920), "norm")]
    for shape, kind in shapes:
        name = f"{kind} {shape}"
        try:
            report["checks"][name] = check(key, shape, kind, full=kind != "plain")
        except Exception as error:
            report["checks"][name] = {"failed": repr(error)[:500]}
        print(name, report["checks"][name], flush=True)
        save()

    cases = [(3072, "norm"), (12288, "plain"), (1920, "norm"), (7680, "plain")]
    cases += [(3072, "plain"), (12288, "gelu")]
    for k, kind in cases:
        if time.perf_counter() - began > options.seconds:
            print("out of time")
            break
        xs = rotating(key, (TOKENS, k))
        site = random_site(key, (1, TOKENS, k), kind)
        elements = TOKENS * k

        def record(op: str, tiling, us: float, per_element: float, k=k, kind=kind):
            entry = {
                "op": op,
                "K": k,
                "front": kind,
                "tiling": str(tiling),
                "us": us,
                "TB/s": TOKENS * k * per_element / us / 1e6,
            }
            report["times"].append(entry)
            print(
                f"{op:24} K={k:6} {kind:6} {us:8.1f} us {entry['TB/s']:6.2f} TB/s "
                f"{tiling if tiling else ''}",
                flush=True,
            )
            save()

        record("copy", None, time_us(lambda x: -x, xs), 4.0)

        def lead(x: jax.Array, site: SiteInput = site) -> SiteInput:
            return with_x(site, x[None])

        record(
            "quantize_int8 XLA",
            None,
            time_us(
                lambda x: int8_reference.quantize_int8(lead(x), with_stats=False), xs
            ),
            3.0,
        )
        candidates = tilings(k) if options.tune else [choose_tiling(k)]
        for tiling in candidates:
            record(
                "quantize_int8",
                tiling,
                time_us(
                    lambda x, t=tiling: int8_kernel.quantize_int8(
                        lead(x), with_stats=False, tiling=t
                    ),
                    xs,
                ),
                3.0,
            )
        record(
            "quantize_int8 stats",
            None,
            time_us(lambda x: int8_kernel.quantize_int8(lead(x), with_stats=True), xs),
            3.0,
        )
        given = jnp.float32(2e-3)
        for tiling in candidates[:: 2 if options.tune else 1]:
            record(
                "quantize_nvfp4",
                tiling,
                time_us(
                    lambda x, t=tiling: nvfp4_kernel.quantize_nvfp4(
                        lead(x), given, with_stats=False, tiling=t
                    ),
                    xs,
                ),
                2.5625,
            )
        record(
            "quantize_nvfp4 two passes",
            None,
            time_us(
                lambda x: nvfp4_kernel.quantize_nvfp4(lead(x), None, with_stats=False),
                xs,
            ),
            2.5625,
        )
        del xs, elements


if __name__ == "__main__":
    main()
