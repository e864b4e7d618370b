"""Samples captions with a model and scores what the videos show."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from sixbit_jax.demo import vocabulary
from sixbit_jax.demo.model import COGVIDEOX, LATENT_SHAPE, DemoModel
from sixbit_jax.demo.scorer import Scores, score
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.sampling.api import sample
from sixbit_jax.sampling.options import Execution, Prompt


class Evaluation(NamedTuple):
    """Sampled videos and how well they follow their captions."""

    videos: Float[np.ndarray, "batch 13 3 32 32"]
    captions: tuple[str, ...]
    held_out: Bool[np.ndarray, " batch"]
    scores: Scores

    def summary(self) -> dict[str, float]:
        """Fractions right over all captions, and over seen and held-out ones."""
        result = self.scores.summary()
        parts = {"held_out": self.held_out, "seen": ~self.held_out}
        for name, chosen in parts.items():
            if chosen.any():
                part = Scores(*(flags[chosen] for flags in self.scores))
                for key, value in part.summary().items():
                    result[f"{name}_{key}"] = value
        return result


def evaluation_attributes(count: int = 256) -> Int[np.ndarray, "count 4"]:
    """A fixed set of attribute vectors: a quarter held out from training, rest seen.

    Raises:
        ValueError: there are not that many combinations.
    """
    held_out = vocabulary.held_out_combinations()
    seen = vocabulary.training_combinations()
    unseen = count // 4
    if count < 1 or unseen > len(held_out) or count - unseen > len(seen):
        raise ValueError(
            f"expected 1 to {4 * len(held_out)} captions, a quarter of them held out, "
            f"got {count}"
        )
    # Even strides over lists that are sorted by attribute cover every value.
    rows = [
        part[np.linspace(0, len(part) - 1, number).round().astype(int)]
        for part, number in ((held_out, unseen), (seen, count - unseen))
    ]
    return np.concatenate(rows)


def calibration_captions(count: int) -> tuple[str, ...]:
    """Captions of the training set that no evaluation uses, always the same ones.

    Raises:
        ValueError: there are not that many.
    """
    used = {tuple(row) for row in evaluation_attributes().tolist()}
    rows = vocabulary.training_combinations().tolist()
    free = [row for row in rows if tuple(row) not in used]
    if not 1 <= count <= len(free):
        raise ValueError(f"expected at most {len(free)} captions, found {count}")
    chosen = np.random.default_rng(0).permutation(len(free))[:count]
    return tuple(vocabulary.caption_of(free[i]) for i in chosen)


def evaluate(
    model: Any,
    attributes: Int[np.ndarray, "batch 4"],
    *,
    demo: DemoModel = COGVIDEOX,
    num_steps: int = 50,
    seed: int = 1,
    dtype: Any = jnp.bfloat16,
    kernels: bool = True,
) -> Evaluation:
    """Sample one video per attribute vector in one batch, and score it.

    Args:
        model: the demo network.
        attributes: int `[batch, 4]`.
        demo: what kind of network it is; gives scheduler and guidance.
        num_steps: denoising steps.
        seed: the seed of the initial noise.
        dtype: compute dtype.
        kernels: as in `sample`.

    Returns:
        Videos, captions and scores.
    """
    captions = tuple(vocabulary.caption_of(row) for row in attributes)
    result = sample(
        model,
        demo.scheduler(),
        # The networks of the demo are trained on prompts of this length.
        Prompt(
            encode_captions(captions),
            encode_captions([""] * len(captions)),
            as_given=True,
        ),
        latent_shape=LATENT_SHAPE,
        num_steps=num_steps,
        guidance=demo.guidance_scale,
        seed=seed,
        execution=Execution(dtype=dtype, kernels=kernels),
    )
    videos = np.asarray(result.latents, np.float32)
    return Evaluation(
        videos, captions, vocabulary.is_held_out(attributes), score(videos, captions)
    )
