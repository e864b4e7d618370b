"""Reading a transformers `config.json` into a frozen dataclass, strictly."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

# What transformers writes beside the numbers of an encoder: bookkeeping, settings of
# training and of text generation. None of it changes what an encoder computes.
BOOKKEEPING = frozenset(
    [
        "architectures",
        "auto_map",
        "dtype",
        "model_type",
        "name_or_path",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "pruned_heads",
        "tie_word_embeddings",
        "tie_encoder_decoder",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "is_decoder",
        "cross_attention_hidden_size",
        "add_cross_attention",
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "finetuning_task",
        "id2label",
        "label2id",
        "task_specific_params",
        "problem_type",
        "prefix",
        "bos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "use_cache",
        "initializer_range",
        "initializer_factor",
        "dropout",
        "dropout_rate",
        "attention_dropout",
        "classifier_dropout",
        "attn_implementation",
        "quantization_config",
    ]
)


def read_fields(
    cls: type,
    values: Mapping[str, Any],
    *,
    title: str,
    ignored: Collection[str] = (),
    fixed: Mapping[str, Collection[Any]] | None = None,
) -> dict[str, Any]:
    """The fields of a dataclass that a config gives, after checking all its keys.

    Args:
      cls: the dataclass; its field names are transformers'.
      values: contents of `config.json`.
      title: how messages call the config.
      ignored: keys that have no meaning for the port, besides `BOOKKEEPING` and those
        that start with an underscore.
      fixed: the values that the port supports of keys that are not fields.

    Returns:
      Values by field name, for `cls(**fields)`.

    Raises:
      ValueError: for unsupported values and unknown keys; lists all of them.
    """
    known = {f.name for f in fields(cls)}
    fixed = fixed or {}
    problems, chosen = [], {}
    for key, value in values.items():
        if key in fixed:
            if value not in fixed[key]:
                wanted = " or ".join(map(repr, fixed[key]))
                problems.append(f"{key}: expected {wanted}, found {value!r}")
        elif key in known:
            chosen[key] = value
        elif key not in BOOKKEEPING and key not in ignored and key[:1] != "_":
            problems.append(f"{key}: not a key of a {title} config")
    if problems:
        raise ValueError(f"{title} config:\n  " + "\n  ".join(problems))
    return chosen


def check_numbers(
    config: Any,
    title: str,
    *,
    positive: Collection[str],
    more: Callable[[], Collection[str]] = tuple,
) -> None:
    """Refuses a config whose sizes are not whole numbers from 1.

    Args:
      config: the dataclass.
      title: how the message calls it.
      positive: names of its sizes.
      more: finds further problems, asked only when the sizes are numbers.

    Raises:
      ValueError: lists all problems.
    """
    problems = []
    for name in positive:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{name}: expected a whole number from 1, found {value!r}")
    if not problems:
        problems += more()
    if problems:
        raise ValueError(f"{title} config:\n  " + "\n  ".join(problems))
