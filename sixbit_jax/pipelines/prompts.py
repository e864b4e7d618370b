"""Prompts to embeddings, with the text encoder of a pipeline directory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from sixbit_jax.pipelines.families import TextRule
from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.tokenizers import PromptTokenizer


@dataclass(frozen=True)
class EncodedPrompts:
    """Embeddings of several prompts.

    Attributes:
      embeds: by prompt, [T, E] on the host, in the dtype they were computed in.
      cut: by prompt, the end that did not fit; only prompts that were cut.
    """

    embeds: dict[str, np.ndarray]
    cut: dict[str, str]


@partial(jax.jit, static_argnames=("graph", "dtype", "kernels"))
def _encode(
    params: Any, ids: Any, mask: Any, *, graph: Any, dtype: Any, kernels: bool
) -> jax.Array:
    return encode(nnx.merge(graph, params), ids, mask, dtype, kernels=kernels)


def encode_prompts(
    encoder: Any,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    *,
    rule: TextRule,
    length: int,
    dtype: Any,
    kernels: bool,
    each: Callable[[str], object] = lambda prompt: None,
) -> EncodedPrompts:
    """Encodes each of several prompts once.

    Args:
      encoder: a T5 or UMT5.
      tokenizer: of the same pipeline.
      prompts: texts; the same text is encoded once.
      rule: of the family.
      length: tokens of a row.
      dtype: of the arithmetic and the result.
      kernels: whether GPU kernels may expand stored weights.
      each: called with every prompt when it is encoded.
    """
    tokenizer.check_fits(encoder.config.vocab_size)
    graph, params = nnx.split(encoder)
    embeds: dict[str, np.ndarray] = {}
    cut: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer([rule.clean(prompt)], max_length=length)
        mask = tokens.mask if rule.masked else None
        rows = _encode(
            params, tokens.ids, mask, graph=graph, dtype=dtype, kernels=kernels
        )
        embeds[prompt] = np.asarray(rows[0])
        if tokens.cut[0]:
            cut[prompt] = tokens.cut[0]
        each(prompt)
    return EncodedPrompts(embeds, cut)


__all__ = ["EncodedPrompts", "encode_prompts"]
