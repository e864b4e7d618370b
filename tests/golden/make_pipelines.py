"""Makes `pipelines/*.npz`: videos of diffusers' own pipelines, float32 on CPUs.

python -m tests.golden.make_pipelines [NAME ...]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders import vae
from diffusers.schedulers import scheduling_dpm_cogvideox
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.golden.image_pipeline_cases import IMAGE_CASES, picture
from tests.golden.pipeline_cases import (
    CASES,
    NEGATIVE,
    PROMPT,
    PipelineCase,
    weights_of,
)
from tests.golden.tokenizer_cases import unpack


def _load(model: torch.nn.Module, folder: str) -> dict[str, list[int]]:
    state = model.state_dict()
    shapes = {
        key: list(value.shape)
        for key, value in state.items()
        # The embedding table has a second name, which would be loaded over the first.
        if value.is_floating_point() and key != "encoder.embed_tokens.weight"
    }
    weights = weights_of(folder, shapes)
    missing = model.load_state_dict(
        {key: torch.from_numpy(value) for key, value in weights.items()}, strict=False
    )
    assert not missing.unexpected_keys
    model.eval()
    return shapes


def _component(folder: str, config: dict[str, Any]) -> torch.nn.Module:
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    if "architectures" in config:
        name = config["architectures"][0]
        kind = name.removesuffix("Model").removesuffix("Encoder") + "Config"
        return getattr(transformers, name)(getattr(transformers, kind)(**values))
    return getattr(diffusers, config["_class_name"]).from_config(values)


def pipeline(case: PipelineCase) -> tuple[Any, dict[str, Any]]:
    """diffusers' pipeline of a case, and the shapes of its weights."""
    parts, shapes = {}, {}
    for folder, config in case.components.items():
        parts[folder] = _component(folder, config)
        shapes[folder] = _load(parts[folder], folder)
    scheduler = getattr(diffusers, case.scheduler["_class_name"]).from_config(
        case.scheduler
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name, (stored, _) in case.tokenizers.items():
            folder = unpack(stored, Path(scratch))
            parts[name] = transformers.AutoTokenizer.from_pretrained(folder)
    if case.processor:
        options = {k: v for k, v in case.processor.items() if "type" not in k}
        parts["image_processor"] = CLIPImageProcessorPil(**options)
    elif case.pictures and case.index["_class_name"].startswith("Wan"):
        parts["image_processor"] = None
    if case.words:
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        parts |= dict.fromkeys((*names, "image_processor"))
    made = getattr(diffusers, case.index["_class_name"])(
        scheduler=scheduler,
        **parts,
        **{k: v for k, v in case.index.items() if not k.startswith("_")},
    )
    made.set_progress_bar_config(disable=True)
    return made, shapes


def _draw_from(case: PipelineCase) -> None:
    """Step noise of the DPM scheduler that the tests can make too; two draws a step."""
    count = 0

    def draw(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        # The first and the last step draw once, all others twice, and use the second.
        step = 0 if count == 1 else count // 2
        return torch.from_numpy(case.step_noise(step, tuple(shape)))

    def draw_picture(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        return torch.from_numpy(case.picture_noise(tuple(shape)))

    scheduling_dpm_cogvideox.randn_tensor = draw
    vae.randn_tensor = draw_picture


def _pictures(case: PipelineCase) -> dict[str, Any]:
    """The pipeline's arguments with the pictures of a case."""
    names = ("image", "last_image")[: case.pictures]
    return {name: picture(f"{name} of {case.name}") for name in names}


def _prompts(case: PipelineCase) -> dict[str, Any]:
    """The pipeline's arguments with the prompts of a case."""
    if not case.words:
        return {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    given = {k: torch.from_numpy(v)[None] for k, v in case.embeds().items()}
    return {
        "prompt_embeds": given["text"],
        "prompt_attention_mask": given["mask"],
        "pooled_prompt_embeds": given["pooled"],
    }


def main() -> None:
    """Runs all cases, or those that are named."""
    cases = CASES | IMAGE_CASES
    for case in [cases[name] for name in sys.argv[1:] or cases]:
        _draw_from(case)
        pipe, shapes = pipeline(case)
        ratio = pipe.vae_scale_factor_spatial
        frames = (case.frames - 1) // 4 + 1
        if case.components["transformer"].get("patch_size_t"):
            frames += -frames % case.components["transformer"]["patch_size_t"]
        channels = case.components["vae"].get("z_dim") or 4
        size = (case.height // ratio, case.width // ratio)
        shape = (1, channels, frames, *size)
        if case.index["_class_name"].startswith("CogVideoX"):
            shape = (1, frames, channels, *size)
        default = 256 if case.components["transformer"].get("rope_axes_dim") else 512
        length = case.components["transformer"].get("max_text_seq_length", default)
        with torch.no_grad():
            video = pipe(
                **_prompts(case),
                **_pictures(case),
                height=case.height,
                width=case.width,
                num_frames=case.frames,
                num_inference_steps=case.steps,
                guidance_scale=case.guidance,
                latents=torch.from_numpy(case.noise(shape)),
                max_sequence_length=length,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
                **case.call,
            ).frames[0]
        video = np.asarray(video)
        more = {}
        if case.pictures:
            first = _pictures(case)["image"]
            size = {"height": case.height, "width": case.width}
            pixels = pipe.video_processor.preprocess(first, **size)[0].numpy()
            # They are bytes after Pillow's filter.
            more["pixels"] = np.round(pixels * 127.5 + 127.5).astype(np.uint8)
        print(case.name, video.shape, video.min(), video.max(), video.std())
        case.file.parent.mkdir(exist_ok=True)
        np.savez_compressed(
            case.file,
            video=np.round(video * 65535).astype(np.uint16),
            meta=json.dumps({"noise_shape": shape, "shapes": shapes}),
            **more,
        )


if __name__ == "__main__":
    main()
