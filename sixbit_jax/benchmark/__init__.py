"""The sampling benchmark that `sixbit bench` runs, and what benchmarks share."""
