"""A small Wan on the demo's videos: flow matching, prompts by cross-attention."""

from typing import Any

from sixbit_jax.demo import text
from sixbit_jax.demo.model import DIFFUSERS_VERSION, DemoModel
from sixbit_jax.demo.recipe import Recipe
from sixbit_jax.models.wan.network import WanTransformer

FLOW_SHIFT = 3.0


def model_config() -> dict[str, Any]:
    """The network's diffusers `config.json`."""
    return {
        "_class_name": WanTransformer.class_name,
        "_diffusers_version": DIFFUSERS_VERSION,
        "added_kv_proj_dim": None,
        "attention_head_dim": 64,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": 1024,
        "freq_dim": 256,
        "image_dim": None,
        "in_channels": 3,
        "num_attention_heads": 4,
        "num_layers": 8,
        "out_channels": 3,
        "patch_size": [1, 4, 4],
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": text.TEXT_DIM,
    }


def scheduler_config() -> dict[str, Any]:
    """The diffusers `scheduler_config.json`; the values of Wan2.1 at 480p."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "flow_shift": FLOW_SHIFT,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    }


WAN = DemoModel(
    name="wan",
    model_class=WanTransformer,
    pipeline="WanPipeline",
    config=model_config,
    scheduler_config=scheduler_config,
    renamed=(
        (".attn1.to_out.", ".attn1.to_out.0."),
        (".attn2.to_out.", ".attn2.to_out.0."),
        (".ffn.up.", ".ffn.net.0.proj."),
        (".ffn.down.", ".ffn.net.2."),
    ),
    # Cross-attention has no gate: its output projection takes the gate's part.
    zero=(
        "scale_shift_table",
        "time_proj.weight",
        "attn2.to_out.weight",
        "proj_out.weight",
    ),
    # Small batches: Adam's steps are as long, and twice as many fit in the time. The
    # share of noise levels above 0.8 and 0.9 is that of the CogVideoX recipe.
    recipe=Recipe(batch=64, high_noise_share=0.0, timestep_shift=3.5),
    guidance_scale=5.0,
)
