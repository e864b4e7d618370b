"""Small problems on which attention to chosen blocks is held against its definition."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from benchmarks.kernels.attention import inputs, relative_error
from pallas_kernels.attention import (
    block_grid,
    centroids,
    choose,
    mosaic_gpu,
    quantize_qkv,
    quantized_centroids,
    select,
    sparse_reference,
)

# Outputs are bfloat16, probabilities and 16-bit centroids too.
_LARGEST_ERROR = 0.006


@dataclasses.dataclass(frozen=True)
class Check:
    """One problem.

    Attributes:
        precision: of the scores.
        shape: batch, tokens, heads, head dimension.
        text: first text token and the token after the last.
        proxies: whether skipped blocks count by their centroids.
        rise: factor of the keys after the first 300: large enough, and rows overflow
            the fixed reference point.
        share: of the blocks, random; 1 is also compared with the dense kernel.
        dtype: of the values.
    """

    precision: Literal["int8", "bf16"]
    shape: tuple[int, int, int, int]
    text: tuple[int, int] = (0, 0)
    proxies: bool = True
    rise: float = 1.0
    share: float = 0.5
    dtype: str = "bfloat16"

    @property
    def head_dim(self) -> int:
        """Of the operands."""
        return self.shape[-1]

    def fields(self) -> dict:
        """For a flat record."""
        batch, tokens, heads, head_dim = self.shape
        return {
            "precision": self.precision,
            "batch": batch,
            "m": tokens,
            "k": head_dim,
            "n": tokens,
            "heads": heads,
            "text": self.text[1] - self.text[0],
            "skipped": "centroids" if self.proxies else "dropped",
            "rise": self.rise,
            "target": self.share,
            "dtype": self.dtype,
        }


CHECKS = (
    Check("int8", (1, 1000, 2, 64), (0, 100)),
    Check("bf16", (1, 1000, 2, 64), (0, 100)),
    Check("int8", (1, 1283, 2, 128)),
    Check("bf16", (1, 1283, 2, 128)),
    Check("int8", (2, 777, 3, 64), proxies=False),
    Check("bf16", (2, 777, 3, 64), proxies=False),
    Check("bf16", (1, 640, 2, 128), (600, 640), proxies=False),
    Check("int8", (1, 700, 2, 64), share=1.0),
    Check("bf16", (1, 700, 2, 128), share=1.0),
    Check("int8", (1, 700, 2, 64), proxies=False, rise=150.0),
    Check("bf16", (1, 700, 2, 128), proxies=False, rise=150.0),
    # Four warpgroups: so many heads that 256 rows waste less than 192.
    Check("int8", (1, 250, 132, 64)),
    Check("bf16", (1, 500, 2, 64), dtype="float16"),
)


def run_check(check: Check) -> float:
    """The relative error of the kernel, compiled and run."""
    batch, tokens, heads, head_dim = check.shape
    q, k, v = inputs((batch, tokens, tokens, heads, head_dim), 3, realistic=False)
    factors = jnp.where(jnp.arange(tokens) < 300, 1.0, check.rise)
    k = (k * factors[:, None, None]).astype(k.dtype)
    q, k, v = (x.astype(check.dtype) for x in (q, k, v))
    grid = block_grid(
        q.shape, precision=check.precision, text=check.text, dtype=q.dtype
    )
    shape = (batch, heads, grid.q_tiles, grid.kv_blocks)
    mask = jax.random.uniform(jax.random.key(5), shape) < check.share
    # A list may have any block alone, the partial one too.
    mask = mask.at[0, 0, -1].set(jnp.arange(grid.kv_blocks) == grid.kv_blocks - 1)
    if check.share == 1 or check.rise > 1:
        mask = mask.at[..., 0].set(True).at[..., -1].set(True)
        mask = mask | (check.share == 1)
    scale = head_dim**-0.5

    def both(q, k, v):
        if check.precision == "int8":
            made = quantize_qkv(q, k, v)
            means = quantized_centroids(made, grid)
            chosen = select(mask, grid, means if check.proxies else None)
            expected = sparse_reference.quantized_attention(made, chosen)
            run = functools.partial(mosaic_gpu.quantized_attention, made)
        else:
            means = centroids(q, k, v, grid)
            chosen = select(mask, grid, means if check.proxies else None)
            expected = sparse_reference.attention(
                q, k, v, chosen, scale=scale, precision="bf16"
            )
            run = functools.partial(
                mosaic_gpu.attention, q, k, v, scale=scale, precision="bf16"
            )
        dense = run() if check.share == 1 else expected
        return run(selection=chosen), expected, dense

    program = jax.jit(both).lower(q, k, v).compile()
    print(f"runs: {check}", flush=True)  # the last one, if it hangs
    found, expected, dense = program(q, k, v)
    return max(relative_error(found, expected), relative_error(found, dense))


# Means of blocks and lists of blocks against their definitions: shape as above, and
# whether text is first.
CHOICES = tuple(
    Check(precision, shape, text, share=share)
    for precision in ("int8", "bf16")
    for shape, text, share in (
        ((2, 1001, 3, 64), (0, 226), 0.5),
        ((1, 1288, 5, 128), (0, 0), 0.3),
        ((1, 3000, 30, 64), (2900, 3000), 0.0),
    )
)


def run_choice(check: Check) -> float:
    """The relative error of means, infinite if the lists are not the same."""
    batch, tokens, heads, head_dim = check.shape
    q, k, v = inputs((batch, tokens, tokens, heads, head_dim), 4, realistic=True)
    grid = block_grid(q.shape, precision=check.precision, text=check.text)
    shape = (batch, heads, grid.q_tiles, grid.kv_blocks)
    mask = jax.random.uniform(jax.random.key(5), shape) < check.share

    def made(implementation: str):
        def run(q, k, v):
            chosen = select(mask, grid, implementation=implementation)
            if check.precision == "int8":
                operands = quantize_qkv(q, k, v)
                means = quantized_centroids(
                    operands, grid, implementation=implementation
                )
            else:
                means = centroids(q, k, v, grid, implementation=implementation)
            tau = choose.by_threshold(means, grid, 0.5, implementation=implementation)
            return means, chosen.lists, tau.density()

        return jax.jit(run).lower(q, k, v).compile()

    kernel, definition = made("mosaic_gpu"), made("reference")
    print(f"runs: means and lists, {check}", flush=True)
    found, expected = kernel(q, k, v), definition(q, k, v)
    if not bool(jnp.array_equal(found[1], expected[1])):
        return float("inf")
    pairs = zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


def run_rises(check: Check) -> float:
    """The largest difference of what each block adds, in powers of two, over 10.

    Over 10, so that the limit of the relative errors allows 0.06: the weights of 8-bit
    scores differ by a rounding.
    """
    batch, tokens, heads, head_dim = check.shape
    q, k, v = inputs((batch, tokens, tokens, heads, head_dim), 6, realistic=False)
    grid = block_grid(q.shape, precision=check.precision, text=check.text)
    shape = (batch, heads, grid.q_tiles, grid.kv_blocks)
    mask = jax.random.uniform(jax.random.key(8), shape) < check.share
    scale = head_dim**-0.5

    def both(q, k, v):
        chosen = select(mask, grid)
        if check.precision == "int8":
            made = quantize_qkv(q, k, v)
            _, found = mosaic_gpu.quantized_attention(
                made, selection=chosen, rises=True
            )
            q, k = made.dequantize()
            expected = sparse_reference.block_rises(q, k, chosen, scale=1.0)
        else:
            _, found = mosaic_gpu.attention(
                q, k, v, scale=scale, precision="bf16", selection=chosen, rises=True
            )
            expected = sparse_reference.block_rises(q, k, chosen, scale=scale)
        same = jnp.isinf(found) & jnp.isinf(expected)
        return jnp.max(jnp.where(same, 0.0, jnp.abs(found - expected)))

    program = jax.jit(both).lower(q, k, v).compile()
    print(f"runs: rises, {check}", flush=True)
    return float(program(q, k, v)) / 10


RISES = (
    Check("int8", (1, 1000, 2, 64), (0, 100), proxies=False, share=0.6),
    Check("bf16", (2, 1283, 2, 128), proxies=False, share=0.6),
    Check("int8", (1, 777, 2, 128), proxies=False, share=0.7),
)


def failed(record: dict) -> bool:
    """Whether a check's record shows a wrong result, or none."""
    return not record.get("relative_error", float("nan")) <= _LARGEST_ERROR
