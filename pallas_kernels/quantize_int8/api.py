"""Per-token INT8 quantization of a site's activation: choice of implementation."""

from typing import Unpack

from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.dispatch import Implementation, dispatch, needs_gpu, needs_hopper
from pallas_kernels.quantize_int8 import mosaic_gpu, reference, triton, xla
from pallas_kernels.row_tiles.site import FrontOptions, SiteInput
from pallas_kernels.triton_backend.calls import needs_triton


def quantize_int8(
    x: Float[Array, "*batch m k"],
    *,
    with_stats: bool = False,
    implementation: str | None = None,
    **front: Unpack[FrontOptions],
) -> tuple[
    Int8[Array, "*batch m k"], Float32[Array, "*batch m"], Float32[Array, ""] | None
]:
    """Quantizes an activation per token, with what stands in front of it fused.

        y = LayerNorm(x) * norm_weight + norm_bias      if norm
        y = y * (1 + scale) + shift                     if given
        y = GELU(y)                                     if activation
        r = y H_128 / sqrt(128), in blocks              if rotation
        s = max|r| / 127 per row,  values = round(r / s)

    Args:
      x: [..., M, K].
      with_stats: also measure max|y| / mean|y| over the whole of y.
      implementation: "mosaic_gpu" (Hopper), "triton" (any GPU since Ampere),
        "xla" (any GPU), "reference", or None for the first that can run here.
      **front: the attributes of `SiteInput` besides x: norm and its affine map,
        modulation of video and text rows, GELU, rotation (128 unless given).

    Returns:
      values int8 [..., M, K], scales float32 [..., M], and the statistic or None. A row
      with NaN or Inf gets a NaN scale and leaves the others alone.

    Raises:
      ValueError: shapes or options that contradict each other.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    site = SiteInput(x, **front)

    def runs(module):
        return lambda: module.quantize_int8(site, with_stats=with_stats)

    run = [
        Implementation("mosaic_gpu", runs(mosaic_gpu), needs_hopper),
        Implementation("triton", runs(triton), needs_triton),
        Implementation("xla", runs(xla), needs_gpu),
        Implementation("reference", runs(reference), definition=True),
    ]
    values, scales, outlier = dispatch("quantize_int8", run, implementation)
    return values, scales, outlier
