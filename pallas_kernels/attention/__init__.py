"""Attention of video transformers: not causal, any token count, 16-bit or 8-bit."""

from pallas_kernels.attention import choose
from pallas_kernels.attention.api import attention, block_grid, quantized_attention
from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.means import (
    Centroids,
    centroids,
    quantized_centroids,
)
from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv
from pallas_kernels.attention.selection import BlockSelection, select

__all__ = [
    "BlockGrid",
    "BlockSelection",
    "Centroids",
    "QuantizedQKV",
    "attention",
    "block_grid",
    "centroids",
    "choose",
    "quantize_qkv",
    "quantized_attention",
    "quantized_centroids",
    "select",
]
