"""The network as tuning runs it: blocks recomputed in the backward pass, features kept.

Works on every network: it asks for nothing outside of `models.network.Network`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.models.network import PromptInputs, for_layer, layers_of


class Outputs(NamedTuple):
    """What teacher and student are compared by.

    Attributes:
      prediction: the prediction of the network, float32.
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
    prompt = model.prepare_prompt(PromptInputs(text), dtype=dtype)
    x, conditioning = model.embed(latents, prompt, timestep.astype(jnp.float32))
    for name, blocks in model.blocks_by_stack().items():
        block_graph, stacked = nnx.split(blocks)

        def body(
            x: Array, layer: tuple[nnx.State, Any], graph: nnx.GraphDef = block_graph
        ) -> tuple[Array, None]:
            params, context = layer
            return nnx.merge(graph, params)(x, for_layer(conditioning, context))[
                0
            ], None

        # The scan keeps XLA from merging both computations; no barrier is needed.
        body = jax.checkpoint(body, prevent_cse=False) if remat else body
        x, _ = jax.lax.scan(body, x, (stacked, layers_of(conditioning, name)))
    prediction = model.unembed(x, conditioning, latents.shape)
    return Outputs(prediction.astype(jnp.float32), x if features else None)


__all__ = ["Outputs", "forward"]
