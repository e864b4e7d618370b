"""Jitted steps of the Wan VAE's halves, and pixels as their networks take them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.vae.causal_conv import Method, State
from sixbit_jax.vae.tiling import Tiling, blend_tiles
from sixbit_jax.vae.wan_blocks import WanStream


@partial(
    jax.jit,
    static_argnames=("graph", "decodes", "method"),
    donate_argnames="past",
)
def run_step(
    weights: Any,
    past: State | None,
    x: Float[Array, "batch F C H W"],
    begins: Bool[Array, ""],
    *,
    graph: Any,
    decodes: bool,
    method: Method,
) -> tuple[Float[Array, "batch F2 C2 H2 W2"], State]:
    """One chunk through a linear over the latents and its half of the network."""
    linear, half = nnx.merge(graph, weights)
    stream = WanStream(past, begins, method=method)
    x = jnp.moveaxis(x, 2, -1)
    y = half(linear(x, stream), stream) if decodes else linear(half(x, stream), stream)
    return jnp.moveaxis(y, -1, 2), stream.state()


class Half(NamedTuple):
    """The encoder or the decoder as a stream over tiles.

    Attributes:
      step: (weights, past, chunk, begins) -> (result, kept); jitted.
      weights: its parameters, in the dtype of the computation.
      source: tiles of what goes in, or None for whole frames.
      target: the same tiles of what comes out.
    """

    step: Callable[..., tuple[jax.Array, State]]
    weights: Any
    source: Tiling | None
    target: Tiling | None

    @classmethod
    def of(
        cls,
        linear: nnx.Module,
        network: nnx.Module,
        *,
        decodes: bool,
        dtype: Any,
        method: Method,
        source: Tiling | None,
        target: Tiling | None,
    ) -> "Half":
        """A half whose parameters are cast once, not in every step."""
        graph, weights = nnx.split((linear, network))
        weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights)
        step = partial(run_step, graph=graph, decodes=decodes, method=method)
        return cls(step, weights, source, target)

    def run(
        self, past: list[list[State]], chunk: Array, *, begins: bool
    ) -> tuple[Array, list[list[State]]]:
        """One step of every tile, each with a past of its own.

        Args:
          past: what the last step kept, by row and column of the tiles.
          chunk: whole frames.
          begins: whether the chunk begins the video; then `past` is not read.

        Returns:
          Whole frames of the result, and what to keep.
        """
        results, kept = [], []
        for i, row in enumerate(self._tiles(chunk)):
            steps = [
                self.step(
                    self.weights,
                    self._start(tile) if begins else past[i][j],
                    tile,
                    jnp.asarray(begins),
                )
                for j, tile in enumerate(row)
            ]
            results.append([result for result, _ in steps])
            kept.append([after for _, after in steps])
        if self.target is None:
            return results[0][0], kept
        return blend_tiles(results, tiling=self.target), kept

    def _tiles(self, x: Array) -> list[list[Array]]:
        tiles = self.source
        if tiles is None:
            return [[x]]
        return [
            [
                x[..., i : i + tiles.height, j : j + tiles.width]
                for j in range(0, x.shape[4], tiles.stride_width)
            ]
            for i in range(0, x.shape[3], tiles.stride_height)
        ]

    def _start(self, chunk: Array) -> State:
        """What no chunk before the first leaves: zeros."""
        kept = jax.eval_shape(self.step, self.weights, None, chunk, jnp.asarray(True))
        return tuple(jnp.zeros(one.shape, one.dtype) for one in kept[1])


@partial(jax.jit, static_argnames="patch")
def to_channels(
    video: Float[Array, "batch F 3 H W"], *, patch: int
) -> Float[Array, "batch F C H2 W2"]:
    """Pixels of a patch as channels, in diffusers' order: colour, column, row."""
    batch, frames, colours, height, width = video.shape
    x = video.reshape(
        batch, frames, colours, height // patch, patch, width // patch, patch
    )
    x = x.transpose(0, 1, 2, 6, 4, 3, 5)
    return x.reshape(batch, frames, -1, *x.shape[-2:])


@partial(jax.jit, static_argnames="patch")
def to_pixels(
    x: Float[Array, "batch F C H W"], *, patch: int
) -> Float[Array, "batch F 3 H2 W2"]:
    """The inverse of `to_channels`, held to [-1, 1]."""
    batch, frames, _, height, width = x.shape
    x = x.reshape(batch, frames, -1, patch, patch, height, width)
    x = x.transpose(0, 1, 2, 5, 4, 6, 3)
    x = x.reshape(batch, frames, -1, height * patch, width * patch)
    return jnp.clip(x, -1.0, 1.0)
