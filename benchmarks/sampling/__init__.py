"""The sampler against PyTorch: `python -m benchmarks.sampling`."""
