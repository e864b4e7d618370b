"""What a network says of itself: blocks, inputs, published defaults, sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Prediction = Literal["v_prediction", "flow_prediction", "epsilon", "sample"]


@dataclass(frozen=True)
class BlockStack:
    """A run of blocks of one kind.

    Attributes:
      name: attribute of the network that holds the blocks, with a leading layer axis
        on every parameter.
      num_blocks: how many there are.
      sites: names of the sites of a block.
      macs: multiply-accumulates per token of each site.
    """

    name: str
    num_blocks: int
    sites: tuple[str, ...]
    macs: tuple[float, ...]


@dataclass(frozen=True)
class PromptSpec:
    """What a network takes as a prompt.

    Attributes:
      width: the width of the embeddings, E.
      length: tokens that the published pipelines give.
      rule: "any": prompts of any length are taken as they are; "exact": of `length`
        only; "zeros": shorter ones are padded with rows of zeros to `length`, longer
        ones are refused.
      stream: where the residual stream holds the text tokens, "before" or "after" the
        video tokens; None where the text comes in by cross-attention.
      masked: whether a mask says which tokens are padding.
      pooled_width: width of a pooled embedding of the prompt, or None.
    """

    width: int
    length: int
    rule: Literal["any", "exact", "zeros"] = "any"
    stream: Literal["before", "after"] | None = "before"
    masked: bool = False
    pooled_width: int | None = None

    def padded(self, embeds: Float[Array, "batch T E"]) -> Float[Array, "batch T2 E"]:
        """Embeddings as the published pipelines give them to the network."""
        missing = self.length - embeds.shape[1]
        if self.rule != "zeros" or missing <= 0:
            return embeds
        return jnp.pad(embeds, ((0, 0), (0, missing), (0, 0)))


@dataclass(frozen=True)
class ConditionSpec:
    """Which inputs a network takes besides latents and timestep.

    Attributes:
      prompt: text embeddings.
      latent_channels: C, of the latents and of the prediction.
      image_latent_channels: extra input channels, which are then required; 0: none.
      image_embeds_width: width of image tokens, which are then required; None: none.
      image_embeds_length: number of image tokens where it is fixed, or None.
      first_frames: given frames come in multiples of so many; 0: none are taken.
      needs_first_frame: whether exactly `first_frames` of them are required.
      ofs: value of CogVideoX1.5's extra scalar in the published pipeline; None: the
        network has no such input.
      embedded_guidance: guidance scale that the network itself reads, as published;
        None: it reads none.
    """

    prompt: PromptSpec
    latent_channels: int
    image_latent_channels: int = 0
    image_embeds_width: int | None = None
    image_embeds_length: int | None = None
    first_frames: int = 0
    needs_first_frame: bool = False
    ofs: float | None = None
    embedded_guidance: float | None = None


@dataclass(frozen=True)
class Compression:
    """How many pixels and frames of a video one latent stands for."""

    spatial: int = 8
    temporal: int = 4


@dataclass(frozen=True)
class Defaults:
    """How the published pipeline of a network samples.

    Attributes:
      scheduler: diffusers' `scheduler_config.json`, with its `_class_name`.
      num_steps: denoising steps.
      guidance_scale: classifier-free guidance.
      frames, height, width: size of the video in frames and pixels.
      fps: frames per second.
      shift_option: option of `scheduler` that holds the flow shift, or None.
      flow_shifts: (largest number of pixels of a frame, shift), ascending; the last
        one holds for every larger frame.
    """

    scheduler: Mapping[str, Any] = field(hash=False)
    num_steps: int
    guidance_scale: float
    frames: int
    height: int
    width: int
    fps: int
    shift_option: str | None = None
    flow_shifts: tuple[tuple[int, float], ...] = ()

    def flow_shift(self, height: int, width: int) -> float | None:
        """The shift for frames of so many pixels; None where there is none."""
        if not self.flow_shifts:
            return None
        fitting = (s for pixels, s in self.flow_shifts if height * width <= pixels)
        return next(fitting, self.flow_shifts[-1][1])

    def scheduler_config(self, height: int, width: int) -> dict[str, Any]:
        """The scheduler's configuration for frames of so many pixels."""
        config, shift = dict(self.scheduler), self.flow_shift(height, width)
        if self.shift_option is not None and shift is not None:
            config[self.shift_option] = shift
        return config


@dataclass(frozen=True)
class Description:
    """Everything about a network that follows from its configuration.

    Attributes:
      stacks: the blocks, in the order they run.
      prediction: what the network predicts; a scheduler's `prediction_type` must fit.
      conditions: its inputs.
      defaults: how its published pipeline samples.
      compression: the compression of the VAE.
      frame_patch: latent frames of a token. Where a video has another number of them,
        frames are computed in front of it and cut after sampling.
      training_shape: (F, C, H, W) of the latents it was trained on.
    """

    stacks: tuple[BlockStack, ...]
    prediction: Prediction
    conditions: ConditionSpec
    defaults: Defaults
    compression: Compression
    frame_patch: int
    training_shape: tuple[int, int, int, int]

    @property
    def num_blocks(self) -> int:
        """Blocks of all stacks together, L."""
        return sum(stack.num_blocks for stack in self.stacks)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites of all stacks, each once, S."""
        return tuple(dict.fromkeys(s for stack in self.stacks for s in stack.sites))

    def latent_shape(
        self,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> tuple[int, int, int, int]:
        """(F, C, H, W) of the latents of a video.

        Args:
          frames: the frames of the video; None is the default.
          height, width: in pixels; None is the default.

        Raises:
          ValueError: for sizes that the VAE cannot represent; lists all of them.
        """
        default, ratio = self.defaults, self.compression
        frames = default.frames if frames is None else frames
        height = default.height if height is None else height
        width = default.width if width is None else width
        problems = []
        if frames < 1 or (frames - 1) % ratio.temporal:
            problems.append(
                f"frames: expected {ratio.temporal} n + 1, found {frames} (next: "
                f"{max(frames - 1, 0) // ratio.temporal * ratio.temporal + 1})"
            )
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % ratio.spatial:
                problems.append(
                    f"{name}: expected a multiple of {ratio.spatial} pixels, found "
                    f"{size}"
                )
        if problems:
            raise ValueError("size of the video:\n  " + "\n  ".join(problems))
        return (
            (frames - 1) // ratio.temporal + 1,
            self.conditions.latent_channels,
            height // ratio.spatial,
            width // ratio.spatial,
        )

    def extra_frames(self, frames: int) -> int:
        """Latent frames computed in front of `frames` ones, and cut after sampling."""
        return -frames % self.frame_patch


__all__ = [
    "BlockStack",
    "Compression",
    "ConditionSpec",
    "Defaults",
    "Description",
    "Prediction",
    "PromptSpec",
]
