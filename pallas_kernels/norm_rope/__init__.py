"""Norms and rotary embedding of queries and keys, and their INT8, in one pass."""

from pallas_kernels.norm_rope.api import norm_rope, norm_rope_qkv
from pallas_kernels.norm_rope.heads import Heads, Rotary

__all__ = ["Heads", "Rotary", "norm_rope", "norm_rope_qkv"]
