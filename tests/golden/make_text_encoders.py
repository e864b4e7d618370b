"""Makes the golden outputs of the prompt and picture encoders with transformers.

Run from the repository root: `python -m tests.golden.make_text_encoders`.
"""

import json
from typing import Any

import numpy as np
import torch
import transformers as t
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.golden.picture_cases import FILE as PIXELS
from tests.golden.picture_cases import PICTURES, PROCESSOR, picture
from tests.golden.text_cases import (
    FOLDER,
    make_ids,
    make_mask,
    make_pixels,
    make_weights,
)

T5 = {
    "vocab_size": 97,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 160,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
NARROW = {**T5, "d_model": 32, "num_layers": 2}
# Sizes that fit nothing, other buckets, another epsilon.
ODD = {
    **T5,
    "vocab_size": 51,
    "d_model": 40,
    "d_kv": 6,
    "d_ff": 70,
    "num_layers": 1,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 19,
    "layer_norm_epsilon": 1e-3,
}
LLAMA = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
CLIP = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
}
TEXT = {
    **CLIP,
    "vocab_size": 99,
    "max_position_embeddings": 20,
    "bos_token_id": 0,
    "eos_token_id": 98,
}
VISION = {**CLIP, "image_size": 28, "patch_size": 7, "hidden_act": "gelu"}
# Position biases that matter, and a residual stream as large as the real one.
BIASED = {"relative_attention_bias": 3.0}
LARGE = {**BIASED, "DenseReluDense.wo": 1e5, "SelfAttention.o": 2e4}
# name: (class, config, gains, batch, length, lengths or None, eos or None).
CASES: dict[str, tuple[Any, ...]] = {
    "t5": (t.T5EncoderModel, T5, BIASED, 2, 20, None, None),
    "t5_masked": (t.T5EncoderModel, T5, BIASED, 2, 20, [20, 7], None),
    "t5_226": (t.T5EncoderModel, NARROW, BIASED, 1, 226, None, None),
    "t5_odd": (t.T5EncoderModel, ODD, BIASED, 3, 41, [1, 41, 30], None),
    "umt5_odd": (t.UMT5EncoderModel, ODD, BIASED, 3, 41, None, None),
    "t5_large": (t.T5EncoderModel, T5, LARGE, 2, 20, None, None),
    "umt5": (t.UMT5EncoderModel, T5, BIASED, 2, 20, [20, 7], None),
    "umt5_200": (t.UMT5EncoderModel, NARROW, BIASED, 1, 200, [150], None),
    "umt5_large": (t.UMT5EncoderModel, T5, LARGE, 2, 20, [13, 1], None),
    "llama": (t.LlamaModel, LLAMA, {}, 2, 24, [24, 9], None),
    "llama_whole": (
        t.LlamaModel,
        {**LLAMA, "num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 2},
        {},
        2,
        24,
        [11, 24],
        None,
    ),
    "clip_text": (t.CLIPTextModel, TEXT, {}, 2, 20, [20, 6], 98),
    # The wrong eos_token_id of old files: the largest id marks the end.
    "clip_text_old_eos": (
        t.CLIPTextModel,
        {**TEXT, "eos_token_id": 2, "hidden_act": "gelu"},
        {},
        2,
        20,
        [13, 4],
        98,
    ),
    "clip_vision": (t.CLIPVisionModel, VISION, {}, 2, 0, None, None),
    "clip_vision_projection": (
        t.CLIPVisionModelWithProjection,
        {**VISION, "hidden_act": "quick_gelu", "patch_size": 14},
        {},
        2,
        0,
        None,
        None,
    ),
}
# Which hidden state pipelines read; the others are run to the end.
SKIPPED = {"llama": 2, "clip_vision": 1, "clip_vision_projection": 1}


def call(
    name: str, model: torch.nn.Module, inputs: dict[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    """The outputs that are stored, at the precision of the model."""
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    states = found.hidden_states
    last = states[-1] if "last_hidden_state" not in found else found.last_hidden_state
    kept = {"output": states[-1 - SKIPPED[name]] if name in SKIPPED else last}
    if "pooler_output" in found and name.startswith("clip_text"):
        kept["pooled"] = found.pooler_output
    kept["largest"] = max(state.abs().max() for state in states)
    return {key: value.numpy() for key, value in kept.items()}


def make(name: str) -> dict[str, Any]:
    """Run one case, write its file, and return what to print about it."""
    cls, config, gains, batch, length, lengths, eos = CASES[name]
    config = cls.config_class(**config)
    config._attn_implementation = "eager"
    model = cls(config).eval()
    shapes = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if key != "encoder.embed_tokens.weight"
    }
    weights = make_weights(shapes, gains)
    found = model.load_state_dict(
        {key: torch.from_numpy(value) for key, value in weights.items()}, strict=False
    )
    assert set(found.missing_keys) <= {"encoder.embed_tokens.weight"}, found
    assert not found.unexpected_keys, found
    values = json.loads(config.to_json_string(use_diff=False))
    values["architectures"] = [cls.__name__]
    if length:
        ids = make_ids(values["vocab_size"], batch, length, lengths, eos)
        inputs = {"input_ids": torch.from_numpy(ids).long()}
        mask = make_mask(length, lengths)
        # HunyuanVideo gives CLIP no mask.
        if mask is not None and not name.startswith("clip"):
            inputs["attention_mask"] = torch.from_numpy(mask).long()
    else:
        inputs = {"pixel_values": torch.from_numpy(make_pixels(values, batch))}
    kept = call(name, model, inputs)
    exact = call(
        name,
        model.double(),
        {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()},
    )["output"]
    output, largest = kept["output"], float(kept.pop("largest"))
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    meta = {
        "config": values,
        "shapes": shapes,
        "gains": gains,
        "batch": batch,
        "length": length,
        "lengths": lengths,
        "eos": eos,
        "largest": largest,
    }
    np.savez_compressed(FOLDER / f"{name}.npz", meta=np.array(json.dumps(meta)), **kept)
    return {"case": name, "largest": largest, "float64_error": float(error)}


def make_buckets() -> None:
    """The bucket of every distance from -600 to 600, as transformers computes it."""
    attention = t.UMT5EncoderModel(t.UMT5Config(**NARROW)).encoder.block[0].layer[0]
    distances = torch.arange(-600, 601)
    found = attention.SelfAttention._relative_position_bucket(distances)
    np.save(FOLDER / "buckets.npy", found.numpy().astype(np.int8))


def make_pixels_of_pictures() -> None:
    """What CLIP's image processor makes of every picture."""
    processor = CLIPImageProcessorPil(**PROCESSOR)
    pictures = [picture(*case) for case in PICTURES]
    found = [processor(p, return_tensors="np")["pixel_values"][0] for p in pictures]
    np.save(PIXELS, np.stack(found).astype(np.float32))


def main() -> None:
    """Make every case."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    make_buckets()
    make_pixels_of_pictures()
    for name in CASES:
        print(json.dumps(make(name)))


if __name__ == "__main__":
    main()
