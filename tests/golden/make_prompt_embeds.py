"""Makes golden prompt embeddings with the published pipelines' own methods.

From words to embeddings: tokenizers of `make_tokenizers.py`, small random encoders.
Run from the repository root: `python -m tests.golden.make_prompt_embeds`.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers as t
from diffusers import CogVideoXPipeline, HunyuanVideoPipeline, WanPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import (
    DEFAULT_PROMPT_TEMPLATE,
)

from tests.golden.make_text_encoders import BIASED, LLAMA, NARROW, TEXT
from tests.golden.prompt_cases import FOLDER, PROMPTS, ROWS, STRIDES, TOKENIZERS
from tests.golden.text_cases import make_weights
from tests.golden.tokenizer_cases import unpack

ENCODERS: dict[str, tuple[Any, dict[str, Any], dict[str, float]]] = {
    "cogvideox": (t.T5EncoderModel, {**NARROW, "vocab_size": 512}, BIASED),
    "wan": (t.UMT5EncoderModel, {**NARROW, "vocab_size": 700}, BIASED),
    "hunyuan_llama": (t.LlamaModel, {**LLAMA, "vocab_size": 904}, {}),
    "hunyuan_clip": (
        t.CLIPTextModel,
        {
            **TEXT,
            "vocab_size": 1101,
            "eos_token_id": 1100,
            "max_position_embeddings": 77,
        },
        {},
    ),
}


def embed(name: str, tokenizer: Any, encoder: Any) -> dict[str, torch.Tensor]:
    """What the pipeline makes of the prompts."""
    self = SimpleNamespace(
        tokenizer=tokenizer,
        text_encoder=encoder,
        tokenizer_2=tokenizer,
        text_encoder_2=encoder,
        _execution_device=torch.device("cpu"),
    )
    prompts, length = list(PROMPTS), ROWS[name]
    if name == "hunyuan_clip":
        method = HunyuanVideoPipeline._get_clip_prompt_embeds
        return {"output": method(self, prompts, max_sequence_length=length)}
    if name == "hunyuan_llama":
        method = HunyuanVideoPipeline._get_llama_prompt_embeds
        output, mask = method(
            self, prompts, DEFAULT_PROMPT_TEMPLATE, max_sequence_length=length
        )
        return {"output": output[:, :: STRIDES[name]], "mask": mask.bool()}
    pipeline = CogVideoXPipeline if name == "cogvideox" else WanPipeline
    method = pipeline._get_t5_prompt_embeds
    return {"output": method(self, prompts, max_sequence_length=length)}


def make(name: str) -> None:
    """Writes one file."""
    cls, config, gains = ENCODERS[name]
    config = cls.config_class(**config)
    config._attn_implementation = "eager"
    encoder = cls(config).eval()
    shapes = {
        key: tuple(value.shape)
        for key, value in encoder.state_dict().items()
        if key != "encoder.embed_tokens.weight"
    }
    weights = make_weights(shapes, gains)
    encoder.load_state_dict(
        {key: torch.from_numpy(value) for key, value in weights.items()}, strict=False
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = unpack(TOKENIZERS[name], Path(folder))
        tokenizer = t.AutoTokenizer.from_pretrained(path)
        found = embed(name, tokenizer, encoder)
    values = json.loads(config.to_json_string(use_diff=False))
    values["architectures"] = [cls.__name__]
    meta = {"config": values, "shapes": shapes, "gains": gains}
    arrays = {key: value.numpy() for key, value in found.items()}
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz", meta=np.array(json.dumps(meta)), **arrays
    )
    print(name, arrays["output"].shape, float(arrays["output"].std()))


def main() -> None:
    """Make every file."""
    torch.set_num_threads(1)
    for name in ENCODERS:
        make(name)


if __name__ == "__main__":
    main()
