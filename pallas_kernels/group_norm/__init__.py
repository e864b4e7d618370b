"""Sums for group normalization of channels-last activations."""

from pallas_kernels.group_norm.api import channel_moments
from pallas_kernels.group_norm.reference import ChannelMoments

__all__ = ["ChannelMoments", "channel_moments"]
