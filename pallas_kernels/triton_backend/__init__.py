"""What the Triton kernels share: the call from JAX, devices, tiles, arithmetic.

Importing this package or an op's `triton.py` needs neither Triton nor jax-triton; the
kernels are in `triton_kernel.py` files, which are imported when one is called.
"""
