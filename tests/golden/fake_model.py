"""A nonlinear stand-in for a transformer that PyTorch, NumPy and JAX evaluate alike."""

from typing import Any


def fake_model(namespace: Any, sample: Any, timestep: Any) -> tuple[Any, Any]:
    """Conditional and unconditional predictions.

    Args:
      namespace: numpy, jax.numpy or torch.
      sample: float32 array.
      timestep: float32 scalar array.

    Returns:
      Two arrays of the sample's shape.
    """
    conditional = namespace.tanh(1.1 * sample + 0.3 * namespace.cos(0.01 * timestep))
    unconditional = 0.8 * namespace.tanh(0.9 * sample)
    unconditional = unconditional - 0.1 * namespace.sin(0.004 * timestep)
    return conditional, unconditional
