"""The network as tuning runs it: blocks recomputed in the backward pass, features kept.

Works on every port: it uses `embed`, `block_stack` and `unembed` only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Outputs(NamedTuple):
    """What teacher and student are compared by.

    Attributes:
      prediction: of the network, float32.
      features: residual stream after the last block, or None.
    """

    prediction: Float[Array, "batch F C H W"]
    features: Float[Array, "batch tokens D"] | None


def forward(
    graph: nnx.GraphDef,
    params: nnx.State,
    latents: Float[Array, "batch F C H W"],
    text: Float[Array, "batch T E"],
    timestep: Float[Array, "batch"],
    *,
    dtype: Any = jnp.float32,
    remat: bool = True,
    features: bool = False,
) -> Outputs:
    """One forward pass.

    Args:
      graph, params: `nnx.split` of the network.
      latents, text, timestep: its inputs.
      dtype: compute dtype.
      remat: keep only the residual stream between blocks, and compute a block again
        in the backward pass; weights that are quantized on the fly then exist for one
        block at a time.
      features: also return the residual stream after the last block.
    """
    model: Any = nnx.merge(graph, params)
    latents = latents.astype(dtype)
    x, conditioning = model.embed(latents, text, timestep.astype(jnp.float32))
    block_graph, stacked = nnx.split(model.block_stack)
    per_layer = getattr(conditioning, "per_layer", None)

    def body(x: Array, layer: tuple[nnx.State, Any]) -> tuple[Array, None]:
        params, context = layer
        given = conditioning
        if context is not None:
            given = conditioning._replace(per_layer=context)
        return nnx.merge(block_graph, params)(x, given)[0], None

    # The scan keeps XLA from merging both computations; no barrier is needed.
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    x, _ = jax.lax.scan(body, x, (stacked, per_layer))
    prediction = model.unembed(x, conditioning, latents.shape)
    return Outputs(prediction.astype(jnp.float32), x if features else None)


__all__ = ["Outputs", "forward"]
