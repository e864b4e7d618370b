"""Expansion of stored NVFP4 to int8 or bfloat16."""

from pallas_kernels.nvfp4_expand.api import nvfp4_expand

__all__ = ["nvfp4_expand"]
