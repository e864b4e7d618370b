"""Attention of video transformers: not causal, any token count, 16-bit or 8-bit."""

from pallas_kernels.attention.api import attention, quantized_attention
from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv

__all__ = ["QuantizedQKV", "attention", "quantize_qkv", "quantized_attention"]
