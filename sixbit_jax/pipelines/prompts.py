"""Prompts to embeddings, with the text encoders of a pipeline directory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from sixbit_jax.models.network import PromptSpec
from sixbit_jax.pipelines.families import TextRule
from sixbit_jax.pipelines.progress import Stopped, Tell, nothing
from sixbit_jax.sampling.options import Prompt
from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.tokenizers import PromptTokenizer, load_tokenizer

TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
POOLED_ENCODER, POOLED_TOKENIZER = "text_encoder_2", "tokenizer_2"


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """One prompt as networks read it, on the host.

    Attributes:
      text: embeddings of its tokens, in the dtype they were computed in.
      mask: which of them are no padding; None where the network takes no mask.
      pooled: embedding of the whole prompt; None where the network takes none.
    """

    text: Float[np.ndarray, "T E"]
    mask: Bool[np.ndarray, "T"] | None = None
    pooled: Float[np.ndarray, "P"] | None = None


@dataclass(frozen=True)
class EncodedPrompts:
    """Embeddings of several prompts.

    Attributes:
      embeds: by prompt.
      cut: by prompt, the end that did not fit; only prompts that were cut.
    """

    embeds: dict[str, PromptEmbeds]
    cut: dict[str, str]

    def of(self, prompt: str | PromptEmbeds) -> PromptEmbeds:
        """Those of one prompt; embeddings are their own."""
        return prompt if isinstance(prompt, PromptEmbeds) else self.embeds[prompt]


def prompt_of(embeds: PromptEmbeds, negative: PromptEmbeds | None) -> Prompt:
    """What `sample` is given for one video."""

    def row(value: np.ndarray | None) -> Any:
        return None if value is None else jnp.asarray(value)[None]

    found = Prompt(row(embeds.text), mask=row(embeds.mask), pooled=row(embeds.pooled))
    if negative is None:
        return found
    return replace(
        found,
        negative_embeds=row(negative.text),
        negative_mask=row(negative.mask),
        negative_pooled=row(negative.pooled),
    )


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
    spec: PromptSpec,
    dtype: Any,
    kernels: bool,
    each: Callable[[str], object] = lambda prompt: None,
) -> EncodedPrompts:
    """Encodes each of several prompts once.

    Args:
      encoder: a T5, UMT5 or Llama.
      tokenizer: of the same pipeline.
      prompts: texts; the same text is encoded once.
      rule: of the family.
      spec: what the network takes.
      dtype: of the arithmetic and the result.
      kernels: whether GPU kernels may expand stored weights.
      each: called with every prompt when it is encoded.
    """
    tokenizer.check_fits(encoder.config.vocab_size)
    graph, params = nnx.split(encoder)
    embeds: dict[str, PromptEmbeds] = {}
    cut: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer(
            [rule.clean(prompt)],
            max_length=spec.length + rule.crop,
            template=rule.template,
        )
        mask = tokens.mask if rule.masked else None
        rows = _encode(
            params, tokens.ids, mask, graph=graph, dtype=dtype, kernels=kernels
        )
        embeds[prompt] = PromptEmbeds(
            np.asarray(rows[0, rule.crop :]),
            tokens.mask[0, rule.crop :] if spec.masked else None,
        )
        if tokens.cut[0]:
            cut[prompt] = tokens.cut[0]
        each(prompt)
    return EncodedPrompts(embeds, cut)


def pooled_prompts(
    encoder: Any,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    *,
    dtype: Any,
    kernels: bool,
) -> dict[str, Float[np.ndarray, "P"]]:
    """One vector of each of several prompts.

    Args:
      encoder: a CLIP; it reads the beginning of a prompt that is too long for it, as
        the published pipelines do.
      tokenizer: of the same pipeline.
      prompts: texts.
      dtype: of the arithmetic and the result.
      kernels: whether GPU kernels may expand stored weights.
    """
    tokenizer.check_fits(encoder.config.vocab_size)
    graph, params = nnx.split(encoder)
    found = {}
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer([prompt], max_length=encoder.config.max_position_embeddings)
        row = _encode(
            params, tokens.ids, None, graph=graph, dtype=dtype, kernels=kernels
        )
        found[prompt] = np.asarray(row[0])
    return found


def encode_all(pipe: Any, prompts: Sequence[str], tell: Tell = nothing) -> Any:
    """Embeddings of prompts with all encoders of a pipeline, one after the other.

    Args:
      pipe: the pipeline; its components are used one after the other.
      prompts: texts; each is encoded once.
      tell: called with ("text", done, all); a true result ends the run.

    Returns:
      `EncodedPrompts`.
    """
    texts = list(dict.fromkeys(prompts))
    if not texts:
        return EncodedPrompts({}, {})
    if pipe.rule.outside:
        raise ValueError(
            f"prompt: expected PromptEmbeds for a {pipe.header.pipeline_class}, whose "
            f"text encoder has no port, found text: {texts[0]!r}"
        )
    tokenizer = load_tokenizer(pipe.path / TOKENIZER)
    options: dict[str, Any] = {"dtype": pipe.dtype, "kernels": pipe.kernels}
    pooled: dict[str, Any] = {}
    if pipe.rule.pooled:
        second = load_tokenizer(pipe.path / POOLED_TOKENIZER)
        with pipe.component(POOLED_ENCODER, dtype=pipe.dtype) as encoder:
            pooled = pooled_prompts(encoder, second, texts, **options)
    count = 0

    def each(prompt: str) -> None:
        nonlocal count
        count += 1
        if tell("text", count, len(texts)):
            raise Stopped("stopped while encoding prompts")

    tell("text", 0, len(texts))
    with pipe.component(TEXT_ENCODER, dtype=pipe.dtype) as encoder:
        found = encode_prompts(
            encoder,
            tokenizer,
            texts,
            rule=pipe.rule,
            spec=pipe.description.conditions.prompt,
            each=each,
            **options,
        )
    embeds = {
        text: replace(one, pooled=pooled.get(text))
        for text, one in found.embeds.items()
    }
    return replace(found, embeds=embeds)


__all__ = [
    "EncodedPrompts",
    "PromptEmbeds",
    "encode_all",
    "encode_prompts",
    "pooled_prompts",
    "prompt_of",
]
