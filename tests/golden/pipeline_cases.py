"""Tiny pipelines of every family: configurations, sizes and prompts of the golden runs.

`make_pipelines.py` builds them with diffusers and stores their videos; the tests build
the same roots on disk (`write_root`) from the same names and shapes, without PyTorch.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.golden.tokenizer_cases import unpack
from tests.golden.weights import random_array, random_weights

FOLDER = Path(__file__).parent / "pipelines"
PROMPT = "a red circle moves left through the forest"
NEGATIVE = "blurred, low quality, static"

T5 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
UMT5 = T5 | {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": 704,
}

LLAMA = {
    "architectures": ["LlamaModel"],
    "model_type": "llama",
    "vocab_size": 904,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
CLIP_TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 1101,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 77,
    "eos_token_id": 1100,
}

COGVIDEOX_VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 8, 8, 8],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "temporal_compression_ratio": 4,
    "sample_height": 32,
    "sample_width": 48,
    "scaling_factor": 0.7,
}
WAN_VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.05, 0.3],
    "latents_std": [1.1, 0.9, 1.3, 0.8],
}
WAN_22_VAE = WAN_VAE | {
    "decoder_base_dim": 12,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "clip_output": False,
}
HUNYUAN_VIDEO_VAE = {
    "_class_name": "AutoencoderKLHunyuanVideo",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.6,
    "down_block_types": ["HunyuanVideoDownBlock3D"] * 4,
    "up_block_types": ["HunyuanVideoUpBlock3D"] * 4,
}

COGVIDEOX = {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 32,
    "num_layers": 2,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 24,
    "use_rotary_positional_embeddings": True,
}
WAN = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
HUNYUAN_VIDEO = {
    "_class_name": "HunyuanVideoTransformer3DModel",
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "guidance_embeds": True,
    "text_embed_dim": 32,
    "pooled_projection_dim": 24,
    "rope_axes_dim": [4, 6, 6],
}
DDIM = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "final_sigmas_type": "zero",
}
EULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 7.0,
}


@dataclass(frozen=True)
class PipelineCase:
    """One tiny pipeline and the run of it that is stored.

    Attributes:
      name: of the file in `pipelines/`.
      index: contents of `model_index.json`, without the components.
      components: folder -> config of everything that has weights.
      scheduler: its configuration.
      frames, height, width: of the video.
      call: further arguments of the pipeline.
      pictures: that it begins with: 1 is the first frame, 2 also the last.
      processor: of pictures, `preprocessor_config.json`.
      words: tokens of a prompt whose embeddings are random; 0: it is text.
    """

    name: str
    index: dict[str, Any]
    components: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    frames: int = 9
    height: int = 32
    width: int = 48
    steps: int = 4
    guidance: float = 5.0
    call: dict[str, Any] = field(default_factory=dict)
    pictures: int = 0
    processor: dict[str, Any] = field(default_factory=dict)
    words: int = 0

    def embeds(self) -> dict[str, np.ndarray]:
        """`text` [T, E], `mask` [T] and `pooled` [P] of a prompt without text."""
        config = self.components["transformer"]
        text = (self.words, config["text_embed_dim"])
        return {
            "text": random_array(f"text of {self.name}", text),
            "mask": np.arange(self.words) < self.words - 5,
            "pooled": random_array(
                f"pooled of {self.name}", (config["pooled_projection_dim"],)
            ),
        }

    @property
    def file(self) -> Path:
        """Where the video and the shapes of the weights are stored."""
        return FOLDER / f"{self.name}.npz"

    @property
    def tokenizers(self) -> dict[str, tuple[str, str]]:
        """Folder of the root -> its folder in `tokenizers/`, and its class."""
        name = self.index["_class_name"]
        if self.words:
            return {}
        if name.startswith("HunyuanVideo"):
            return {
                "tokenizer": ("llama", "LlamaTokenizerFast"),
                "tokenizer_2": ("clip", "CLIPTokenizer"),
            }
        return {
            "tokenizer": ("umt5" if name.startswith("Wan") else "t5", "T5Tokenizer")
        }

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """Initial latents in diffusers' layout."""
        return random_array(f"noise of {self.name}", shape)

    def step_noise(self, step: int, shape: tuple[int, ...]) -> np.ndarray:
        """What a stochastic scheduler adds in a step."""
        return random_array(f"noise of {self.name}, step {step}", shape)

    def picture_noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """What is drawn where the latents of a picture are a sample."""
        return random_array(f"noise of the picture of {self.name}", shape)

    def stored(self) -> dict[str, Any]:
        """`video` float32 [frames, height, width, 3] in 0..1, `noise`, `shapes`."""
        with np.load(self.file) as arrays:
            meta = json.loads(str(arrays["meta"]))
            video = arrays["video"].astype(np.float32) / 65535
        noise = self.noise(tuple(meta["noise_shape"]))
        return {"video": video, "noise": noise, "shapes": meta["shapes"]}


def _cog(name: str, **changes: Any) -> PipelineCase:
    scheduler = DDIM | changes.pop("scheduler", {})
    return PipelineCase(
        name=name,
        index={"_class_name": "CogVideoXPipeline"},
        components={
            "text_encoder": T5,
            "transformer": COGVIDEOX | changes,
            "vae": COGVIDEOX_VAE,
        },
        scheduler=scheduler,
        guidance=6.0,
    )


def _wan(
    name: str,
    *,
    index: dict[str, Any] | None = None,
    vae: dict[str, Any] = WAN_VAE,
    second: bool = False,
    size: tuple[int, int] = (32, 48),
    frames: int = 9,
    **changes: Any,
) -> PipelineCase:
    transformer = WAN | changes
    components = {"text_encoder": UMT5, "transformer": transformer, "vae": vae}
    if second:
        components["transformer_2"] = transformer
    return PipelineCase(
        name=name,
        index={"_class_name": "WanPipeline"} | (index or {}),
        components=components,
        scheduler=UNIPC,
        frames=frames,
        height=size[0],
        width=size[1],
    )


def _hunyuan_video(name: str, **changes: Any) -> PipelineCase:
    return PipelineCase(
        name=name,
        index={"_class_name": "HunyuanVideoPipeline"},
        components={
            "text_encoder": LLAMA,
            "text_encoder_2": CLIP_TEXT,
            "transformer": HUNYUAN_VIDEO,
            "vae": HUNYUAN_VIDEO_VAE,
        },
        scheduler=EULER,
        guidance=6.0,
        **changes,
    )


CASES = {
    case.name: case
    for case in (
        _cog(
            "cogvideox_2b",
            use_rotary_positional_embeddings=False,
            scheduler={"snr_shift_scale": 3.0},
        ),
        _cog("cogvideox_5b", scheduler={"_class_name": "CogVideoXDPMScheduler"}),
        _cog("cogvideox_1_5", patch_size_t=2, patch_bias=False),
        _wan("wan_2_1"),
        _wan(
            "wan_2_2_ti2v",
            index={"expand_timesteps": True},
            vae=WAN_22_VAE,
            size=(64, 64),
            frames=5,
        ),
        _wan("wan_2_2_a14b", index={"boundary_ratio": 0.875}, second=True),
        # Long enough for two windows of the autoencoder.
        _hunyuan_video("hunyuan_video", frames=21),
        _hunyuan_video("hunyuan_video_true_cfg", call={"true_cfg_scale": 3.0}),
    )
}


def write_root(case: PipelineCase, folder: Path) -> Path:
    """Writes the diffusers root that `make_pipelines.py` ran, without PyTorch.

    Args:
      case: the pipeline.
      folder: to write into.

    Returns:
      The root.
    """
    shapes = case.stored()["shapes"]
    root = folder / case.name
    index: dict[str, Any] = dict(case.index)
    for name, config in case.components.items():
        (root / name).mkdir(parents=True)
        encoder = "architectures" in config
        library = "transformers" if encoder else "diffusers"
        class_name = config["architectures"][0] if encoder else config["_class_name"]
        index[name] = [library, class_name]
        (root / name / "config.json").write_text(json.dumps(config))
        stem = "model" if encoder else "diffusion_pytorch_model"
        save_file(weights_of(name, shapes[name]), root / name / f"{stem}.safetensors")
    for name, (stored, class_name) in case.tokenizers.items():
        index[name] = ["transformers", class_name]
        unpack(stored, root).rename(root / name)
    if case.processor:
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
        (root / "image_processor").mkdir()
        file = root / "image_processor" / "preprocessor_config.json"
        file.write_text(json.dumps(case.processor))
    index["scheduler"] = ["diffusers", case.scheduler["_class_name"]]
    (root / "scheduler").mkdir()
    (root / "scheduler/scheduler_config.json").write_text(json.dumps(case.scheduler))
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def weights_of(folder: str, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The weights of one component, from names and shapes.

    Everything but the transformers is the same in all cases.
    """
    found = random_weights({k: tuple(v) for k, v in shapes.items()})
    if folder == "transformer_2":
        found = {k: v[::-1].copy() for k, v in found.items()}
    if folder == "vae":
        # Pixels that are clipped could not tell a right video from a wrong one.
        for key in ("decoder.conv_out.conv.weight",):
            if key in found:
                found[key] *= np.float32(0.25)
        # Latents of a picture are as large as noise, or hardly matter for the video.
        for key in ("encoder.conv_out.weight",):
            if key in found:
                found[key] *= np.float32(6)
    return found
