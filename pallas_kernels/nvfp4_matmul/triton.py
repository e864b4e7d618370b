"""`nvfp4_matmul` on RTX 50 (sm_120) by Triton's block-scaled dot: an optional extra.

Those GPUs have FP4 tensor cores, but neither wgmma nor tcgen05, which is what Mosaic
GPU drives. Lowered and compiled to PTX in the tests where jax-triton is installed;
never run by us.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.gemm import epilogue
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.triton_backend import calls
from pallas_kernels.triton_backend.calls import Launch

_BLOCKS = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128}


def needs_triton_and_rtx_50() -> None:
    """Raises NotImplementedError unless both are there."""
    found = dispatch.compute_capability()
    if found is None or found[0] != 12:
        device = "no NVIDIA GPU" if found is None else f"compute capability {found}"
        raise NotImplementedError(
            f"triton: expected compute capability 12.x (RTX 50), found {device}"
        )
    calls.needs_triton()


def nvfp4_matmul(
    x_codes: jax.Array,
    x_block_scales: jax.Array,
    x_tensor_scale: jax.Array,
    w_codes: jax.Array,
    w_block_scales: jax.Array,
    w_tensor_scale: jax.Array,
    operands: EpilogueOperands,
    out_dtype,
) -> jax.Array:
    """The sums by `tl.dot_scaled`; XLA does scales and epilogue.

    Raises:
        NotImplementedError: the extra is not installed.
    """
    *lead, m, half = x_codes.shape
    n = w_codes.shape[0]
    rows = x_codes.size // half
    [sums] = calls.call(
        "nvfp4_matmul:nvfp4_sums",
        (
            x_codes.reshape(rows, half),
            x_block_scales.reshape(rows, -1),
            w_codes,
            w_block_scales,
        ),
        [jax.ShapeDtypeStruct((rows, n), jnp.float32)],
        grid=(-(-rows // _BLOCKS["BLOCK_M"]), -(-n // _BLOCKS["BLOCK_N"])),
        launch=Launch(8, 3),
        fused_multiply_add=True,
        M=rows,
        N=n,
        K=2 * half,
        **_BLOCKS,
    )
    scale = (x_tensor_scale * w_tensor_scale).astype(jnp.float32)
    y = sums.reshape(*lead, m, n) * scale[..., None, None]
    return epilogue.apply(y, operands, out_dtype)
