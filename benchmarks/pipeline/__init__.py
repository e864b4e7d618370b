"""Prompt (and picture) to video at real size: `python -m benchmarks.pipeline`."""
