"""Test-wide settings, made before JAX is imported."""

import os

# Most of the time of these tests is XLA compiling small programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
