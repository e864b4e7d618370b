"""NVFP4 quantization behind norm, modulation, GELU and rotation."""

from pallas_kernels.quantize_nvfp4.api import quantize_nvfp4

__all__ = ["quantize_nvfp4"]
