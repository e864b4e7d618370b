"""Fast, small video diffusion transformers in JAX."""
