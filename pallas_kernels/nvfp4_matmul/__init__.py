"""NVFP4 matrix product with exact products and a fused epilogue."""

from pallas_kernels.nvfp4_matmul.api import nvfp4_matmul

__all__ = ["nvfp4_matmul"]
