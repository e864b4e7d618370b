"""What follows from a HunyuanVideo configuration."""

from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.network import (
    BlockStack,
    Compression,
    ConditionSpec,
    Defaults,
    Description,
    PromptSpec,
)

DUAL_SITES = (
    "attn_in",
    "text_attn_in",
    "attn_out",
    "text_attn_out",
    "ff_in",
    "ff_mid",
    "text_ff_in",
    "text_ff_mid",
)
SINGLE_SITES = ("fused_in", "fused_out")
TEXT_LENGTH = 256
"""Tokens of the prompt in the published pipeline, padding included."""
_FRAMES, _HEIGHT, _WIDTH = 129, 720, 1280


def describe(config: HunyuanVideoConfig) -> Description:
    """Stacks, inputs and published defaults of a configuration."""
    compression = Compression(8, 4)
    latent_shape = (
        (_FRAMES - 1) // compression.temporal + 1,
        config.out_channels,
        _HEIGHT // compression.spatial,
        _WIDTH // compression.spatial,
    )
    conditions = ConditionSpec(
        PromptSpec(
            config.text_embed_dim,
            TEXT_LENGTH,
            stream="after",
            masked=True,
            pooled_width=config.pooled_projection_dim,
        ),
        latent_channels=config.out_channels,
        image_latent_channels=config.in_channels - config.out_channels,
        first_frames=int(config.image_condition_type == "token_replace"),
        needs_first_frame=config.image_condition_type == "token_replace",
        embedded_guidance=6.0 if config.guidance_embeds else None,
    )
    defaults = Defaults(
        scheduler={
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 7.0,
            "spacing": "even",
        },
        num_steps=50,
        # Classifier-free guidance is an option: the network reads its scale.
        guidance_scale=1.0,
        frames=_FRAMES,
        height=_HEIGHT,
        width=_WIDTH,
        fps=24,
        shift_option="shift",
        flow_shifts=((0, 7.0),),
    )
    return Description(
        stacks=_stacks(config, latent_shape),
        prediction="flow_prediction",
        conditions=conditions,
        defaults=defaults,
        compression=compression,
        frame_patch=config.patch_size_t,
        training_shape=latent_shape,
    )


def _stacks(
    config: HunyuanVideoConfig, latent_shape: tuple[int, int, int, int]
) -> tuple[BlockStack, BlockStack]:
    """Both stacks; a dual block's sites see a share of the tokens each.

    The shares are those of the published size: the weight of a site in activation bits,
    which must not depend on what is sampled.
    """
    frames, _, height, width = latent_shape
    patch_t, patch_h, patch_w = config.patch
    video = (frames // patch_t) * (height // patch_h) * (width // patch_w)
    share = video / (video + TEXT_LENGTH)
    square, up = float(config.dim**2), float(config.dim * config.hidden)
    own = {"attn_in": 3 * square, "attn_out": square, "ff_in": up, "ff_mid": up}
    dual = BlockStack(
        "transformer_blocks",
        config.num_layers,
        DUAL_SITES,
        tuple(
            own[site.removeprefix("text_")]
            * (1 - share if site.startswith("text_") else share)
            for site in DUAL_SITES
        ),
    )
    single = BlockStack(
        "single_transformer_blocks",
        config.num_single_layers,
        SINGLE_SITES,
        (3 * square + up, square + up),
    )
    return dual, single


__all__ = ["DUAL_SITES", "SINGLE_SITES", "TEXT_LENGTH", "describe"]
