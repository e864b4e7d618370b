"""Stored NVFP4 weights to what the tensor cores of a route multiply."""

from __future__ import annotations

from typing import Literal

import jax
from jaxtyping import Array, Float, UInt8

from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.numerics.nvfp4 import BLOCK
from pallas_kernels.nvfp4_expand import mosaic_gpu, reference, triton
from pallas_kernels.triton_backend.calls import needs_triton


def nvfp4_expand(
    codes: UInt8[Array, "*batch n half_k"],
    block_scales: Array,
    tensor_scale: Float[Array, "*batch"],
    *,
    to: Literal["int8", "bfloat16"] = "int8",
    scales: Float[Array, "*batch n"] | None = None,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Expands NVFP4 to bfloat16, or to INT8 with one scale per output channel.

        value = E2M1 * block_scale * tensor_scale
        int8  = round(value * 127 / amax(row)),   scale = amax(row) / 127

    Args:
        codes: `[..., N, K/2]` uint8, two E2M1 codes per byte, the even index low.
        block_scales: `[..., N, K/16]` float8_e4m3fn.
        tensor_scale: `[...]` float32.
        to: `"int8"` or `"bfloat16"`.
        scales: `[..., N]` float32, positive: scales to use for int8 (values saturate)
            instead of those of each row's largest magnitude.
        implementation: `"mosaic_gpu"` (Hopper), `"triton"` (any GPU since Ampere),
            `"reference"` or `None`.

    Returns:
        `[..., N, K]` bfloat16; or `[..., N, K]` int8 and `[..., N]` float32 scales, in
        which a row with a NaN block scale becomes zeros with a NaN scale.

    Raises:
        ValueError: shapes that do not belong together, or an unknown target.
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    *lead, n, half = codes.shape
    expected = {
        "block_scales": (*lead, n, 2 * half // BLOCK),
        "tensor_scale": tuple(lead),
    }
    found = {"block_scales": block_scales.shape, "tensor_scale": tensor_scale.shape}
    if scales is not None:
        expected["scales"], found["scales"] = (*lead, n), scales.shape
    if expected != found or (2 * half) % BLOCK:
        raise ValueError(
            f"nvfp4_expand: codes {codes.shape} need K a multiple of {BLOCK} and "
            f"{expected}, found {found}"
        )
    if to not in ("int8", "bfloat16") or (to == "bfloat16" and scales is not None):
        raise ValueError(
            "nvfp4_expand: `to` must be 'int8' or 'bfloat16', scales only with 'int8'; "
            f"found {to!r} {'with' if scales is not None else 'without'} scales"
        )
    arguments = (codes, block_scales, tensor_scale)

    def on_gpu() -> jax.Array | tuple[jax.Array, jax.Array]:
        if to == "int8":
            return mosaic_gpu.expand_int8(*arguments, scales)
        return mosaic_gpu.expand_bfloat16(*arguments)

    def runs(module):
        return lambda: module.nvfp4_expand(*arguments, to=to, scales=scales)

    return dispatch(
        "nvfp4_expand",
        (
            Implementation("mosaic_gpu", on_gpu, needs_hopper),
            Implementation("triton", runs(triton), needs_triton),
            Implementation("reference", runs(reference), definition=True),
        ),
        implementation,
    )
