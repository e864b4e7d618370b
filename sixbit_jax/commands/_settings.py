"""How a network is sampled: what the command line says, or what the network does."""

import argparse
import sys
from typing import Any, NamedTuple

from sixbit_jax.commands import _shared
from sixbit_jax.commands._networks import Network

Size = tuple[int | None, int | None, int | None]


class Settings(NamedTuple):
    """What follows from options and network.

    Attributes:
      scheduler: the scheduler of the run.
      latent_shape: (F, C, H, W).
      num_steps: denoising steps.
      scale: the scale of the guidance.
      as_given: take prompts as they are where the network's pipelines pad them.
    """

    scheduler: Any
    latent_shape: tuple[int, int, int, int]
    num_steps: int
    scale: float
    as_given: bool

    @property
    def guided(self) -> bool:
        """Whether there is a second branch for the negative prompt."""
        return self.scale > 1


def asked_size(args: argparse.Namespace) -> Size:
    """(frames, height, width) of the options that `add_size_arguments` adds."""
    return args.frames, args.height, args.width


def settings_for(
    args: argparse.Namespace,
    network: Network,
    *,
    size: Size = (None, None, None),
    captions: bool = False,
    as_given: bool = False,
) -> Settings:
    """The settings of a run.

    Args:
      args: with the options of `_shared.add_schedule_arguments`.
      network: that is sampled.
      size: frames, height and width that were asked for, in latents.
      captions: whether the prompts are captions: the network is then of the demo's
        kind, and its videos are of the demo's size.
      as_given: see `sampling.options.Prompt`.

    Raises:
      ValueError: for options that do not fit the network; lists all of them.
    """
    from sixbit_jax.demo.model import LATENT_SHAPE
    from sixbit_jax.sampling.checks import schedule_problems, size_problems
    from sixbit_jax.sampling.schedulers.choice import choose_scheduler

    model, description = network.model, network.model.description
    default = LATENT_SHAPE if captions else description.training_shape
    frames, height, width = size
    shape = (
        default[0] if frames is None else frames,
        default[1],
        default[2] if height is None else height,
        default[3] if width is None else width,
    )
    defaults, ratio = description.defaults, description.compression
    steps = _shared.steps_of(args) or defaults.num_steps
    problems = _caption_problems(description) if captions else []
    problems = problems or list(size_problems(description, model.config, shape))
    scheduler: Any = None
    try:
        scheduler = choose_scheduler(
            description,
            network.header.scheduler,
            name=args.scheduler,
            shift=args.shift,
            sigmas=args.sigmas,
            timesteps=args.timesteps,
            size=(shape[2] * ratio.spatial, shape[3] * ratio.spatial),
        )
    except ValueError as error:
        problems.append(str(error))
    else:
        problems += schedule_problems(model, description, scheduler, steps)
    if problems:
        raise ValueError("\n  ".join(problems))
    if network.header.scheduler is None and args.scheduler is None:
        print(
            "the checkpoint has no scheduler: taking the published "
            f"{type(scheduler).class_name}",
            file=sys.stderr,
        )
    scale = defaults.guidance_scale if args.guidance is None else args.guidance
    return Settings(scheduler, shape, steps, scale, captions or as_given)


def _caption_problems(description: Any) -> list[str]:
    """Why captions mean nothing to a network."""
    from sixbit_jax.demo.model import LATENT_SHAPE
    from sixbit_jax.demo.text import TEXT_DIM

    spec = description.conditions
    wanted = (TEXT_DIM, LATENT_SHAPE[1])
    found = (spec.prompt.width, spec.latent_channels)
    if found == wanted:
        return []
    return [
        f"--captions: expected a network of the demo's kind, with prompts of width "
        f"{wanted[0]} and {wanted[1]} channels, found width {found[0]} and {found[1]} "
        "channels (others take --prompt-embeds)"
    ]
