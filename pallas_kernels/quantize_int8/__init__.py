"""Per-token INT8 quantization behind norm, modulation, GELU and rotation."""

from pallas_kernels.quantize_int8.api import quantize_int8

__all__ = ["quantize_int8"]
