"""Which scheduler a network runs with: its checkpoint's, its published, or another."""

from collections.abc import Mapping, Sequence
from typing import Any

from sixbit_jax.models.network import Description
from sixbit_jax.sampling.schedulers import from_config
from sixbit_jax.sampling.schedulers.base import Scheduler
from sixbit_jax.sampling.schedulers.flow import FlowSchedule

NAMES = {
    "ddim": ("v_prediction", "CogVideoXDDIMScheduler"),
    "dpm": ("v_prediction", "CogVideoXDPMScheduler"),
    "unipc": ("flow_prediction", "UniPCMultistepScheduler"),
    "euler": ("flow_prediction", "FlowMatchEulerDiscreteScheduler"),
    "lcm": ("flow_prediction", "FlowMatchLCMScheduler"),
}
"""What each short name predicts, and diffusers' class."""
_SHIFTS = {
    "UniPCMultistepScheduler": "flow_shift",
    "FlowMatchEulerDiscreteScheduler": "shift",
    "FlowMatchLCMScheduler": "shift",
}


def names_for(description: Description) -> tuple[str, ...]:
    """Short names of the schedulers that fit a network."""
    return tuple(
        name
        for name, (prediction, _) in NAMES.items()
        if prediction == description.prediction
    )


def choose_scheduler(
    description: Description,
    config: Mapping[str, Any] | None,
    *,
    name: str | None = None,
    shift: float | None = None,
    size: tuple[int, int] | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> Scheduler:
    """The scheduler of a run.

    Args:
      description: the description of the network.
      config: the checkpoint's `scheduler_config.json`, or None.
      name: another update rule on the same noise schedule, one of `NAMES`.
      shift: of the flow sigmas; None is that of `config`, or the published one.
      size: (height, width) of the video in pixels, which the published shift depends
        on; None is the network's default.
      sigmas: of a flow: noise levels before each step, not shifted (`with_sigmas`).
      timesteps: the timesteps of each step (`with_timesteps`).

    Raises:
      ValueError: for a scheduler that predicts something else than the network, for a
        shift or sigmas where there are none, and for a given schedule that is none.
    """
    default = description.defaults
    height, width = (default.height, default.width) if size is None else size
    chosen = dict(config or default.scheduler_config(height, width))
    given = chosen.get("_class_name")
    if name is not None:
        fitting = names_for(description)
        if name not in fitting:
            raise ValueError(
                f"scheduler: expected one of {', '.join(fitting)} for a network of "
                f"{description.prediction}, found {name!r}"
            )
        wanted = NAMES[name][1]
        if wanted != given:
            chosen = _translated(chosen, wanted)
    target = chosen.get("_class_name")
    if shift is not None:
        if target not in _SHIFTS:
            raise ValueError(f"shift: expected none for {target}, found {shift}")
        chosen[_SHIFTS[target]] = shift
    if "spacing" in default.scheduler and target == default.scheduler["_class_name"]:
        # Said by the pipeline and not by the file.
        chosen.setdefault("spacing", default.scheduler["spacing"])
    scheduler = from_config(chosen)
    if scheduler.prediction_type != description.prediction:
        raise ValueError(
            f"scheduler {target}: expected one for {description.prediction}, which "
            f"this network predicts ({', '.join(names_for(description))}); found "
            f"{scheduler.prediction_type}"
        )
    return _at(scheduler, sigmas, timesteps)


def _at(
    scheduler: Any,
    sigmas: Sequence[float] | None,
    timesteps: Sequence[float] | None,
) -> Scheduler:
    """The scheduler at a given schedule."""
    if sigmas is not None:
        if not isinstance(scheduler, FlowSchedule):
            raise ValueError(
                f"sigmas: expected none for {type(scheduler).__name__}, which is no "
                f"flow, found {list(sigmas)}; give timesteps"
            )
        scheduler = scheduler.with_sigmas(sigmas)
    if timesteps is not None:
        scheduler = scheduler.with_timesteps(timesteps)
    return scheduler


def _translated(config: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """The same noise schedule for another class."""
    given = str(config.get("_class_name"))
    if wanted not in _SHIFTS and given not in _SHIFTS:
        return {**config, "_class_name": wanted}
    train = config.get("num_train_timesteps", 1000)
    found = {"_class_name": wanted, "num_train_timesteps": train}
    if given in _SHIFTS and wanted in _SHIFTS:
        found[_SHIFTS[wanted]] = config.get(_SHIFTS[given], 1.0)
        if wanted == "UniPCMultistepScheduler":
            found |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return found


__all__ = ["NAMES", "choose_scheduler", "names_for"]
