"""Quality of the methods on the bundled models: `python -m benchmarks.quality`."""
