"""From words to embeddings, against the published pipelines' own methods."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.prompts import (
    HUNYUAN_VIDEO_CROP,
    HUNYUAN_VIDEO_TEMPLATE,
    clean_wan_prompt,
)
from sixbit_jax.text_encoders.tokenizers import load_tokenizer
from tests.golden import prompt_cases, tokenizer_cases
from tests.golden.prompt_cases import PROMPTS, ROWS, STRIDES
from tests.sixbit_jax.text_encoders.encoders import golden_model, relative_l2

LONG = 2


@pytest.fixture
def parts(tmp_path):
    """Case, tokenizer and encoder of a name."""

    def make(name):
        case = prompt_cases.load(name)
        folder = tokenizer_cases.unpack(prompt_cases.TOKENIZERS[name], tmp_path)
        tokenizer, model = load_tokenizer(folder), golden_model(case)
        tokenizer.check_fits(case.config["vocab_size"])
        return case, tokenizer, model

    return make


def assert_only_the_long_prompt_is_cut(tokens):
    assert [bool(cut) for cut in tokens.cut] == [i == LONG for i in range(4)]


def test_cogvideox_reads_padding_and_uses_every_row(parts):
    case, tokenizer, model = parts("cogvideox")
    tokens = tokenizer(PROMPTS, max_length=ROWS["cogvideox"])
    output = encode(model, jnp.asarray(tokens.ids), None, jnp.float32)
    assert relative_l2(output, case.output) < 1e-5
    assert_only_the_long_prompt_is_cut(tokens)


def test_wan_cleans_prompts_masks_padding_and_returns_zeros_there(parts):
    case, tokenizer, model = parts("wan")
    cleaned = [clean_wan_prompt(prompt) for prompt in PROMPTS]
    tokens = tokenizer(cleaned, max_length=ROWS["wan"])
    output = encode(model, jnp.asarray(tokens.ids), tokens.mask, jnp.float32)
    assert relative_l2(output, case.output) < 1e-5
    assert (np.asarray(output)[~tokens.mask] == 0).all()
    assert_only_the_long_prompt_is_cut(tokens)


def test_hunyuan_video_puts_prompts_into_its_template_and_crops_it(parts):
    case, tokenizer, model = parts("hunyuan_llama")
    length = ROWS["hunyuan_llama"] + HUNYUAN_VIDEO_CROP
    tokens = tokenizer(PROMPTS, max_length=length, template=HUNYUAN_VIDEO_TEMPLATE)
    output = encode(model, jnp.asarray(tokens.ids), tokens.mask, jnp.float32)
    output = output[:, HUNYUAN_VIDEO_CROP :: STRIDES["hunyuan_llama"]]
    assert relative_l2(output, case.output) < 1e-5
    assert np.array_equal(tokens.mask[:, HUNYUAN_VIDEO_CROP:], case.mask)
    assert_only_the_long_prompt_is_cut(tokens)


def test_hunyuan_video_takes_the_pooled_embedding_of_clip(parts):
    case, tokenizer, model = parts("hunyuan_clip")
    tokens = tokenizer(PROMPTS, max_length=ROWS["hunyuan_clip"])
    pooled = encode(model, jnp.asarray(tokens.ids), None, jnp.float32)
    assert relative_l2(pooled, case.output) < 1e-5
    assert_only_the_long_prompt_is_cut(tokens)
