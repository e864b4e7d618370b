"""A linear layer whose weight is an array or stored in a compressed format.

What a format offers to run here, in every site, in the sampler and in checkpoints is
`sixbit_jax.formats.StoredWeight`, whose module says who asks for what.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.formats import StoredWeight
from sixbit_jax.nn.applied_weight import AppliedWeight, dense

Weight = jax.Array | StoredWeight | AppliedWeight


class Affine(NamedTuple):
    """What a linear multiplies with and adds: its weight `[N, K]` and bias `[N]`."""

    weight: Weight
    bias: Array | None


def matmul(
    x: Float[Array, "*batch K"], weight: Weight, bias: Float[Array, "N"] | None
) -> Float[Array, "*batch N"]:
    """x W^T + b with an unquantized activation, in the dtype of x.

    A rotated weight needs the activation rotated by the caller.
    """
    # No preferred_element_type: XLA accumulates 16-bit products in float32 in any
    # case, and a float32 output would make both GEMMs of the backward pass float32.
    if isinstance(weight, AppliedWeight):
        y = weight.apply(x)
    else:
        y = jnp.einsum("...k,nk->...n", x, dense(weight, x.dtype))
    return y if bias is None else y + bias.astype(x.dtype)


class Linear(nnx.Module):
    """y = x W^T + b with W `[out, in]` as PyTorch stores it.

    The weight may be replaced by a `StoredWeight` (NVFP4Array, UniformArray, ...).
    Called directly, the layer never quantizes its activation: this is how modulation
    and embedding linears run.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        bound = 1.0 / math.sqrt(in_features)
        shape = (out_features, in_features)
        self.weight = nnx.Param(
            jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
        )
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if bias else None

    def affine(self) -> Affine:
        """The values of weight and bias."""
        bias = None if self.bias is None else self.bias[...]
        return Affine(self.weight.get_value(), bias)

    def __call__(
        self, x: Float[Array, "*batch K"], *, kernels: bool = False
    ) -> Float[Array, "*batch N"]:
        """x W^T + b; `kernels` lets a GPU kernel expand a stored weight."""
        weight, bias = self.affine()
        if isinstance(weight, StoredWeight):
            x = weight.prepare(x)
            whole = isinstance(weight, AppliedWeight)
            if kernels and x.dtype == jnp.bfloat16 and not whole:
                # XLA's fused dequantization of a few rows takes longer than both.
                weight = weight.expand_bfloat16()
        return matmul(x, weight, bias)
