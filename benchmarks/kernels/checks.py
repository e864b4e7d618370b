"""Checks of the matrix products on a GPU at shapes that no benchmark times.

    python -m benchmarks.kernels.checks

Odd numbers of rows, batch entries with their own gates, output types, NaN rows: what
the interpreter cannot run or runs only at toy sizes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.int8_matmul import int8_matmul

# leading dimensions, M, K, N, text rows, out dtype
CASES = (
    ((), 1, 256, 64, 0, jnp.bfloat16),
    ((), 226, 1024, 1536, 0, jnp.float32),
    ((), 1001, 1920, 1920, 226, jnp.bfloat16),
    ((2,), 777, 3072, 1008, 226, jnp.float16),
    ((2,), 1776, 3072, 3072, 226, jnp.bfloat16),
    ((), 45_106, 3072, 3072, 226, jnp.bfloat16),
    ((), 5, 128, 48, 2, jnp.bfloat16),
)


def check(lead, m, k, n, text_rows, dtype) -> float:
    """Largest error in units of the output type's precision at the terms' size."""
    keys = iter(jax.random.split(jax.random.key(m), 9))
    x = jax.random.randint(next(keys), (*lead, m, k), -127, 128, jnp.int8)
    w = jax.random.randint(next(keys), (n, k), -127, 128, jnp.int8)
    x_scales = jax.random.uniform(next(keys), (*lead, m)) * 1e-3
    w_scales = jax.random.uniform(next(keys), (n,)) * 1e-3
    if m > 1:  # A single row stays finite, or nothing would be compared.
        x_scales = x_scales.at[..., m // 2].set(jnp.nan)
    extra = {"bias": jax.random.normal(next(keys), (n,), jnp.bfloat16)}
    if text_rows:
        extra["residual"] = jax.random.normal(next(keys), (*lead, m, n), dtype)
        extra["gate"] = jax.random.normal(next(keys), (*lead, n), jnp.bfloat16)
        extra["text_gate"] = jax.random.normal(next(keys), (*lead, n), jnp.bfloat16)
        extra["text_rows"] = text_rows

    def run(implementation, out_dtype):
        return jax.jit(
            lambda *a: int8_matmul(
                *a, **extra, out_dtype=out_dtype, implementation=implementation
            )
        )(x, x_scales, w, w_scales)

    found = run("mosaic_gpu", dtype).astype(jnp.float32)
    expected = run("reference", jnp.float32)
    if not bool((jnp.isnan(found) == jnp.isnan(expected)).all()):
        return float("nan")
    size = jnp.maximum(jnp.abs(expected), 1.0)
    error = jnp.nanmax(jnp.abs(found - expected) / size)
    return float(error / jnp.finfo(dtype).eps)


def main() -> None:
    """Prints one line per case; fails if any error exceeds the rounding."""
    failed = []
    for case in CASES:
        error = check(*case)
        print(f"{case}: {error:.2f} eps", flush=True)
        # float32 has the order of roundings to differ in, the others half a step.
        if not error <= (4.0 if case[-1] == jnp.float32 else 0.51):
            failed.append(case)
    if failed:
        raise SystemExit(f"wrong results for {failed}")


if __name__ == "__main__":
    main()
