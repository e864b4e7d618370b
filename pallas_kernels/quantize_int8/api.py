"""Per-token INT8 quantization of a site's activation: choice of implementation."""

from typing import Literal

from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.dispatch import Implementation, dispatch, needs_gpu, needs_hopper
from pallas_kernels.quantize_int8 import mosaic_gpu, reference, triton, xla
from pallas_kernels.row_tiles.site import SiteInput
from pallas_kernels.triton_backend.calls import needs_triton

type Operand = Float[Array, "*batch k"] | None


def quantize_int8(
    x: Float[Array, "*batch m k"],
    *,
    norm: Literal["layer"] | None = None,
    norm_weight: Float[Array, " k"] | None = None,
    norm_bias: Float[Array, " k"] | None = None,
    eps: float = 1e-5,
    shift: Operand = None,
    scale: Operand = None,
    text_shift: Operand = None,
    text_scale: Operand = None,
    text_rows: int = 0,
    activation: Literal["gelu_tanh"] | None = None,
    rotation: int = 128,
    with_stats: bool = False,
    implementation: str | None = None,
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
      norm: "layer" or None.
      norm_weight, norm_bias: affine map of the norm.
      eps: of the norm.
      shift, scale: modulation, one per leading index of x.
      text_shift, text_scale: modulation of the first `text_rows` rows instead.
      text_rows: number of those rows.
      activation: "gelu_tanh" or None.
      rotation: 128 or 0.
      with_stats: also measure max|y| / mean|y| over the whole of y.
      implementation: "mosaic_gpu" (Hopper), "triton" (any GPU since Ampere),
        "xla" (any GPU), "reference", or None for the first that can run here.

    Returns:
      values int8 [..., M, K], scales float32 [..., M], and the statistic or None. A row
      with NaN or Inf gets a NaN scale and leaves the others alone.

    Raises:
      ValueError: shapes or options that contradict each other.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    site = SiteInput(
        x,
        norm=norm,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        eps=eps,
        shift=shift,
        scale=scale,
        text_shift=text_shift,
        text_scale=text_scale,
        text_rows=text_rows,
        activation=activation,
        rotation=rotation,
    )

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
