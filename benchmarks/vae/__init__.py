"""Video autoencoders at real size, with random weights: `python -m benchmarks.vae`."""
