"""What follows from a Wan configuration."""

from sixbit_jax.models.network import (
    BlockStack,
    Compression,
    ConditionSpec,
    Defaults,
    Description,
    PromptSpec,
)
from sixbit_jax.models.wan.config import WanConfig

SITES = ("attn_in", "attn_out", "cross_in", "cross_out", "ff_in", "ff_mid")
TEXT_LENGTH = 512
"""Rows of the prompt in every published pipeline; those after its end are zeros."""
_TI2V_CHANNELS = 48


def describe(config: WanConfig) -> Description:
    """Stacks, inputs and published defaults of a configuration."""
    square, up = config.dim**2, config.dim * config.ffn_dim
    blocks = BlockStack(
        "blocks", config.num_layers, SITES, (3 * square, square, square, square, up, up)
    )
    conditions = ConditionSpec(
        PromptSpec(config.text_dim, TEXT_LENGTH, rule="zeros", stream=None),
        latent_channels=config.out_channels,
        image_latent_channels=config.in_channels - config.out_channels,
        image_embeds_width=config.image_dim,
        image_embeds_length=config.pos_embed_seq_len,
        first_frames=config.patch_size[0],
    )
    # Wan2.2-TI2V-5B has a VAE of its own, with 48 channels.
    ti2v = config.out_channels == _TI2V_CHANNELS
    compression = Compression(16 if ti2v else 8, 4)
    frames, height, width = (121, 704, 1280) if ti2v else (81, 480, 832)
    defaults = Defaults(
        scheduler=_scheduler(5.0 if ti2v else 3.0),
        num_steps=50,
        guidance_scale=5.0,
        frames=frames,
        height=height,
        width=width,
        fps=24 if ti2v else 16,
        shift_option="flow_shift",
        flow_shifts=((0, 5.0),) if ti2v else ((480 * 832, 3.0), (720 * 1280, 5.0)),
    )
    return Description(
        stacks=(blocks,),
        prediction="flow_prediction",
        conditions=conditions,
        defaults=defaults,
        compression=compression,
        frame_patch=config.patch_size[0],
        training_shape=(
            (frames - 1) // compression.temporal + 1,
            config.out_channels,
            height // compression.spatial,
            width // compression.spatial,
        ),
    )


def _scheduler(shift: float) -> dict[str, object]:
    return {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "flow_shift": shift,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    }


__all__ = ["SITES", "TEXT_LENGTH", "describe"]
