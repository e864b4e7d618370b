"""Samples captions with the small pipeline's parts and scores what the videos show."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from sixbit_jax.demo import images
from sixbit_jax.demo.latent import captions, parts, scorer, tokens, vae, world
from sixbit_jax.sampling.api import sample
from sixbit_jax.sampling.options import Execution, Prompt

_SEED = 77


def evaluation_rows(
    count: int,
) -> tuple[Int[np.ndarray, "count 8"], Bool[np.ndarray, " count"]]:
    """A fixed set of attribute vectors, half of them held out, and which are."""
    known = world.combinations()
    held = world.is_held_out(known)
    generator = np.random.default_rng(_SEED)
    chosen = [
        part[generator.choice(len(part), size=number, replace=False)]
        for part, number in (
            (known[held], count // 2),
            (known[~held], count - count // 2),
        )
    ]
    rows = np.concatenate(chosen)
    return rows, np.arange(count) < count // 2


def evaluation_captions(rows: Int[np.ndarray, "count 8"]) -> list[str]:
    """A caption of each, always the same one."""
    return captions.captions(rows, seed=_SEED)


def embed(graph: Any, params: Any, texts: list[str], *, dtype: Any) -> Array:
    """Prompt embeddings, [texts, T, E]; an empty text gives those without prompt."""
    ids = tokens.encode(texts)
    encoder = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), params))
    return encoder(jnp.asarray(ids), dtype=dtype)


def evaluate(
    graphs: dict[str, Any],
    params: Any,
    autoencoder: tuple[Any, Any, float],
    *,
    decoder: Any = None,
    count: int,
    batch: int,
    num_steps: int,
    dtype: str,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """Samples and scores.

    Args:
      graphs: structures, as `parts.new_params` returns them.
      params: weights of transformer and text encoder.
      autoencoder: its structure, weights and scaling factor.
      decoder: compiled `vae.make_decoder`, if there is one.
      count: captions.
      batch: sampled at a time.
      num_steps: denoising steps.
      dtype: compute dtype.
      sheet: a picture of some videos is written there.

    Returns:
      A record: fractions right per attribute, over all and held-out captions.
    """
    start = time.perf_counter()
    kind = jnp.dtype(dtype)
    rows, held = evaluation_rows(count)
    texts = evaluation_captions(rows)
    model = nnx.merge(graphs["transformer"], params["transformer"])
    vae_graph, vae_params, scale = autoencoder

    if decoder is None:
        decoder = jax.jit(vae.make_decoder(vae_graph, scale, dtype))
    embedded = jax.jit(partial(embed, graphs["text"], dtype=kind), static_argnums=1)
    found = []
    for first in range(0, count, batch):
        part = texts[first : first + batch]
        part += [part[-1]] * (batch - len(part))
        result = sample(
            model,
            parts.TRANSFORMER.scheduler(),
            Prompt(
                embedded(params["text"], tuple(part)),
                embedded(params["text"], ("",) * batch),
                as_given=True,
            ),
            latent_shape=parts.LATENT_SHAPE,
            num_steps=num_steps,
            guidance=parts.GUIDANCE_SCALE,
            seed=1 + first,
            execution=Execution(dtype=kind, kernels=False),
        )
        found.append(
            np.asarray(decoder(vae_params, result.latents.astype(jnp.float32)))
        )
    videos = np.concatenate(found)[:count]
    if sheet is not None:
        images.write_png(
            sheet,
            images.contact_sheet(videos[:: max(count // 10, 1)], every=6, scale=1),
        )
    record: dict[str, Any] = {
        "captions": count,
        "num_steps": num_steps,
        "guidance_scale": parts.GUIDANCE_SCALE,
        "evaluation_seconds": round(time.perf_counter() - start, 1),
    }
    for name, chosen in (("", np.full(count, True)), ("held_out_", held)):
        if chosen.any():
            result = scorer.score(videos[chosen], rows[chosen])
            record |= {name + key: round(value, 4) for key, value in result.items()}
    return record
