"""INT8 matrix product with row and column scales and a fused epilogue."""

from pallas_kernels.int8_matmul.api import int8_matmul

__all__ = ["int8_matmul"]
