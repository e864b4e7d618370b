"""Captions, rendered videos and their latents: what the transformer learns from."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from sixbit_jax.demo.latent import captions, parts, render, tokens, vae, world

CAPTIONS_EACH = 4


def covered(scene: render.Scene, attributes: world.Attributes) -> Array:
    """How much of every latent pixel each object covers, uint8 [b, f, h, w, 2].

    Args:
      scene: of whole videos.
      attributes: of them.
    """
    # The middle of the frames that a latent frame stands for.
    times = np.maximum(4 * np.arange(parts.LATENT_FRAMES) - 2, 0)
    side = 2 * parts.LATENT
    grid = (jnp.arange(side) + 0.5) * (world.SIZE / side) - world.SIZE / 2
    camera = scene.camera[:, times]
    x = grid[None, None, None, :] / camera[..., 1, None, None]
    x = x + camera[..., 0, None, None]
    y = grid[None, None, :, None] / camera[..., 1, None, None]
    maps = []
    for index, shape in enumerate((attributes.shape, attributes.other_shape)):
        centre, radius = scene.centre[:, times, index], scene.radius[:, times, index]
        u = (x - centre[..., 0, None, None]) / radius[..., None, None]
        v = (y - centre[..., 1, None, None]) / radius[..., None, None]
        kinds = [render.distance(kind, u, v) for kind in range(len(world.SHAPES))]
        chosen = [(shape == i)[:, None, None, None] for i in range(len(kinds))]
        inside = jax.nn.sigmoid(-6 * jnp.select(chosen, kinds))
        b, f = inside.shape[:2]
        halves = inside.reshape(b, f, parts.LATENT, 2, parts.LATENT, 2)
        maps.append(halves.mean((3, 5)))
    return jnp.round(255 * jnp.stack(maps, -1)).astype(jnp.uint8)


def make_captions(*, videos: int, seed: int) -> dict[str, Any]:
    """Attribute vectors and token ids of their captions; none is held out."""
    generator = np.random.default_rng(seed)
    known = world.combinations()
    known = known[~world.is_held_out(known)]
    rows = known[generator.integers(len(known), size=videos)]
    texts = captions.captions(np.repeat(rows, CAPTIONS_EACH, axis=0), seed=seed)
    ids = tokens.encode(texts).reshape(videos, CAPTIONS_EACH, -1)
    return {"rows": jnp.asarray(rows), "ids": jnp.asarray(ids.astype(np.uint8))}


def make_encoder(graph: Any, scale: float, *, mesh: Mesh) -> Any:
    """`(params, key, rows) -> (latents, cover)` of rendered videos, jitted.

    Args:
      graph: of the autoencoder.
      scale: the factor of its latents for the transformer.
      mesh: the devices over which rows and results are split.
    """

    def encoded(params: Any, key: Key[Array, ""], rows: Array) -> tuple[Array, Array]:
        kind = jnp.bfloat16
        model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(kind), params))
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        attributes = world.from_rows(rows)
        scene = render.sample_scenes(key, attributes)
        video = render.render(attributes, scene)
        mean, _ = vae.encode(model, video.astype(kind))
        latents = jnp.moveaxis(scale * mean, -1, 2).astype(kind)
        return latents, covered(scene, attributes)

    split = jax.shard_map(
        encoded,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
    return jax.jit(split)


def encode_all(
    program: Callable[..., tuple[Array, Array]],
    params: Any,
    data: dict[str, Any],
    *,
    batch: int,
    seed: int,
    seconds: float,
    split: NamedSharding,
) -> tuple[dict[str, Any], int]:
    """Renders and encodes the videos of all captions, as many as the time allows.

    Args:
      program: what `make_encoder` makes, for `batch` rows.
      params: the parameters of the autoencoder.
      data: rows and token ids of the captions.
      batch: the videos of a call, on all devices together.
      seed: of the scenes.
      seconds: the time for it. Videos that are not reached are replaced by those that
        are, captions included, so that shapes stay as they are.
      split: how arrays of all videos lie on the devices.

    Returns:
      The data with latents and cover, and how many videos differ.

    Raises:
      ValueError: if the number of videos is not a multiple of `batch`.
    """
    count = len(data["rows"])
    if count % batch:
        raise ValueError(f"videos: expected a multiple of {batch}, found {count}")
    began, made = time.perf_counter(), []
    rows, key = np.asarray(data["rows"]), jax.random.key(seed)
    for number in range(count // batch):
        some = jax.device_put(rows[number * batch : (number + 1) * batch], split)
        found = program(params, jax.random.fold_in(key, number), some)
        made.append(jax.block_until_ready(found))
        if time.perf_counter() - began > seconds:
            break
    done = batch * len(made)
    chosen = np.arange(count) % done

    def joined(*several: Array) -> Array:
        whole = jnp.concatenate(several)
        return whole if done == count else whole[chosen]

    latents, cover = (
        jax.jit(joined, out_shardings=split)(*several)
        for several in zip(*made, strict=True)
    )
    given = {k: jax.device_put(np.asarray(v)[chosen], split) for k, v in data.items()}
    return given | {"latents": latents, "cover": cover}, done


def shapes_of(data: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the captions' arrays and of the latents that will join them."""
    count, (frames, channels, height, width) = len(data["rows"]), parts.LATENT_SHAPE
    full = dict(data)
    full["latents"] = jax.ShapeDtypeStruct(
        (count, frames, channels, height, width), jnp.bfloat16
    )
    full["cover"] = jax.ShapeDtypeStruct((count, frames, height, width, 2), jnp.uint8)
    return full


__all__ = [
    "CAPTIONS_EACH",
    "covered",
    "encode_all",
    "make_captions",
    "make_encoder",
    "shapes_of",
]
