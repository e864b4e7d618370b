"""Tiny pipelines that begin with a picture; `pipeline_cases.py` has the others."""

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from tests.golden.pipeline_cases import CASES, COGVIDEOX_VAE, PipelineCase
from tests.golden.weights import random_array

# Neither the aspect ratio of the videos nor a size that needs no filter.
PICTURE_SIZE = (61, 37)

CLIP = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 28,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 16,
}
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "resample": 3,
}


def picture(name: str) -> Image.Image:
    """A smooth picture with some noise, RGB; the name decides its colours."""
    width, height = PICTURE_SIZE
    y, x = np.mgrid[0:height, 0:width] / np.array([[[height]], [[width]]])
    tone = random_array(f"tones of {name}", (3, 4))
    waves = [t[0] * np.sin(5 * x + t[1]) + t[2] * np.cos(4 * y + t[3]) for t in tone]
    noise = random_array(f"grain of {name}", (height, width, 3))
    values = 127 + 40 * np.stack(waves, -1) + 8 * noise
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _image(
    of: str,
    name: str,
    *,
    network: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    pictures: int = 1,
    **changes: Any,
) -> PipelineCase:
    """The case `of` with a picture, other fields and more channels of its network."""
    case = CASES[of]
    kind = "Wan" if of.startswith("wan") else "CogVideoX"
    components = {
        folder: config | ((network or {}) if folder.startswith("transformer") else {})
        for folder, config in case.components.items()
    }
    return replace(
        case,
        name=name,
        index=case.index | {"_class_name": f"{kind}ImageToVideoPipeline"},
        components=components | (more or {}),
        # CogVideoX decodes an even number of latent frames to more than its video has.
        frames=5 if kind == "Wan" else 9,
        pictures=pictures,
        **changes,
    )


def _hunyuan_video(name: str, **network: Any) -> PipelineCase:
    """Prompts come as embeddings: LLaVA, which reads the picture too, has no port."""
    case = CASES["hunyuan_video"]
    guidance = network.pop("guidance", case.guidance)
    parts = {k: v for k, v in case.components.items() if not k.startswith("text")}
    parts["transformer"] = parts["transformer"] | network
    return replace(
        case,
        name=name,
        index={"_class_name": "HunyuanVideoImageToVideoPipeline"},
        components=parts,
        frames=9,
        guidance=guidance,
        pictures=1,
        words=24,
    )


IMAGE_CASES = {
    case.name: case
    for case in (
        _image(
            "wan_2_1",
            "wan_2_1_i2v",
            network={"in_channels": 12, "image_dim": 32, "added_kv_proj_dim": 32},
            more={"image_encoder": CLIP},
            processor=PROCESSOR,
        ),
        _image("wan_2_2_ti2v", "wan_2_2_ti2v_i2v"),
        _image(
            "cogvideox_5b",
            "cogvideox_5b_i2v",
            network={"in_channels": 8, "use_learned_positional_embeddings": True},
        ),
        _image("wan_2_2_a14b", "wan_2_2_a14b_i2v", network={"in_channels": 12}),
        _image(
            "cogvideox_1_5",
            "cogvideox_1_5_i2v",
            network={"in_channels": 8, "ofs_embed_dim": 16},
            more={"vae": COGVIDEOX_VAE | {"invert_scale_latents": True}},
        ),
        _image(
            "wan_2_1",
            "wan_2_1_flf2v",
            network={
                "in_channels": 12,
                "image_dim": 32,
                "added_kv_proj_dim": 32,
                "pos_embed_seq_len": 10,
            },
            more={"image_encoder": CLIP},
            processor=PROCESSOR,
            pictures=2,
        ),
        _image(
            "wan_2_2_a14b",
            "wan_2_2_a14b_flf2v",
            network={"in_channels": 12},
            pictures=2,
        ),
        _hunyuan_video("hunyuan_video_i2v", image_condition_type="token_replace"),
        _hunyuan_video(
            "hunyuan_video_i2v_concat",
            image_condition_type="latent_concat",
            in_channels=9,
            guidance_embeds=False,
            # Which no one reads then; ours is classifier-free there.
            guidance=1.0,
        ),
    )
}
