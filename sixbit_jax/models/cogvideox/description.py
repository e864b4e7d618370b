"""What follows from a CogVideoX configuration."""

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.network import (
    BlockStack,
    Compression,
    ConditionSpec,
    Defaults,
    Description,
    PromptSpec,
)

SITES = ("attn_in", "attn_out", "ff_in", "ff_mid")
_SPATIAL = 8


def describe(config: CogVideoXConfig) -> Description:
    """Stacks, inputs and published defaults of a configuration."""
    square, temporal = config.dim**2, config.temporal_compression_ratio
    blocks = BlockStack(
        "transformer_blocks",
        config.num_layers,
        SITES,
        (3 * square, square, 4 * square, 4 * square),
    )
    prompt = PromptSpec(
        config.text_embed_dim,
        config.max_text_seq_length,
        # A table of learned positions has a fixed number of text rows.
        rule="exact" if config.use_learned_positional_embeddings else "any",
    )
    conditions = ConditionSpec(
        prompt,
        latent_channels=config.out_channels,
        image_latent_channels=config.in_channels - config.out_channels,
        ofs=None if config.ofs_embed_dim is None else 2.0,
    )
    defaults = Defaults(
        scheduler=_scheduler(config),
        num_steps=50,
        guidance_scale=6.0,
        frames=(config.sample_latent_frames - 1) * temporal + 1,
        height=config.sample_height * _SPATIAL,
        width=config.sample_width * _SPATIAL,
        fps=8 if config.patch_size_t is None else 16,
    )
    return Description(
        stacks=(blocks,),
        prediction="v_prediction",
        conditions=conditions,
        defaults=defaults,
        compression=Compression(_SPATIAL, temporal),
        frame_patch=config.patch_size_t or 1,
        training_shape=(
            config.sample_latent_frames,
            config.out_channels,
            config.sample_height,
            config.sample_width,
        ),
    )


def _scheduler(config: CogVideoXConfig) -> dict[str, object]:
    """The published schedule; only 2b, which has no rotary embeddings, is shifted."""
    return {
        "_class_name": "CogVideoXDDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": 1.0 if config.use_rotary_positional_embeddings else 3.0,
        "timestep_spacing": "trailing",
    }


__all__ = ["SITES", "describe"]
