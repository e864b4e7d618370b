"""What the schemas of all encoders share: keys of transformers that change nothing."""

from typing import Any

from sixbit_jax.config_schema import Check, integer

SIZE = integer(1, 2**20)
COUNT = integer(1, 1024)


def anything(*names: str) -> dict[str, Check]:
    """Keys whose value has no effect on what an encoder computes."""
    return dict.fromkeys(names, Check("any value", lambda value: value))


def only(*allowed: Any) -> Check:
    """One of the values that are supported."""

    def read(value: Any) -> Any:
        # By type as well: 1 is not True.
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ValueError(value)
        return value

    return Check(" or ".join(map(repr, allowed)), read)


# What transformers writes beside the numbers of an encoder: bookkeeping, settings of
# training and of text generation.
BOOKKEEPING = anything(
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
)
