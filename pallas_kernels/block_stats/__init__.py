"""Temporal Delta Cache: statistics, storage and use of a block's delta."""

from pallas_kernels.block_stats.api import apply_delta, block_stats
from pallas_kernels.block_stats.cache import CachedDelta, CacheFormat
from pallas_kernels.block_stats.reference import BlockStats

__all__ = ["BlockStats", "CacheFormat", "CachedDelta", "apply_delta", "block_stats"]
