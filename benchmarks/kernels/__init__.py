"""Speed of the GPU kernels against XLA and PyTorch: `python -m benchmarks.kernels`."""
