"""NVFP4 quantization of a site's activation: choice of implementation."""

from typing import Unpack

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

from pallas_kernels.dispatch import Implementation, dispatch, needs_gpu, needs_hopper
from pallas_kernels.quantize_nvfp4 import mosaic_gpu, reference, triton, xla
from pallas_kernels.row_tiles.site import FrontOptions, SiteInput
from pallas_kernels.triton_backend.calls import needs_triton


def quantize_nvfp4(
    x: Float[Array, "*batch m k"],
    *,
    tensor_scale: Float[Array, ""] | float | None = None,
    with_stats: bool = False,
    implementation: str | None = None,
    **front: Unpack[FrontOptions],
) -> tuple[
    UInt8[Array, "*batch m half_k"],
    Array,
    Float32[Array, ""],
    Float32[Array, ""] | None,
]:
    """Quantizes an activation to NVFP4, with what stands in front of it fused.

    The front end is that of `quantize_int8`; the format is `numerics.nvfp4`.

    Args:
      x: [..., M, K].
      tensor_scale: second-level scale, for example of the step before; None measures
        it in a first pass. Values beyond 6 * 448 times a given scale saturate.
      with_stats: also measure max|y| / mean|y| over the whole of y.
      implementation: "mosaic_gpu" (Hopper), "triton" (any GPU since Ampere),
        "xla" (any GPU), "reference", or None for the first that can run here.
      **front: the attributes of `SiteInput` besides x: norm and its affine map,
        modulation of video and text rows, GELU, rotation (128 unless given).

    Returns:
      codes uint8 [..., M, K/2] (even index in the low nibble), block scales
      float8_e4m3fn [..., M, K/16], tensor scale float32 (one for all leading axes), and
      the statistic or None. A block with NaN or Inf gets a NaN scale.

    Raises:
      ValueError: shapes or options that contradict each other.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    site = SiteInput(x, **front)
    if tensor_scale is not None:
        tensor_scale = jnp.asarray(tensor_scale, jnp.float32)

    def runs(module):
        return lambda: module.quantize_nvfp4(site, tensor_scale, with_stats=with_stats)

    run = [
        Implementation("mosaic_gpu", runs(mosaic_gpu), needs_hopper),
        Implementation("triton", runs(triton), needs_triton),
        Implementation("xla", runs(xla), needs_gpu),
        Implementation("reference", runs(reference), definition=True),
    ]
    codes, scales, used, outlier = dispatch("quantize_nvfp4", run, implementation)
    return codes, scales, used, outlier
