"""Schedulers: pure functions over a state pytree, one file each."""

from collections.abc import Mapping
from typing import Any

from sixbit_jax.config_schema import ConfigError
from sixbit_jax.reading.messages import brief
from sixbit_jax.sampling.schedulers.base import Scheduler, SchedulerState
from sixbit_jax.sampling.schedulers.cogvideox_ddim import CogVideoXDDIM
from sixbit_jax.sampling.schedulers.cogvideox_dpm import CogVideoXDPM
from sixbit_jax.sampling.schedulers.flow_match_euler import FlowMatchEuler
from sixbit_jax.sampling.schedulers.flow_match_lcm import FlowMatchLCM
from sixbit_jax.sampling.schedulers.unipc import UniPC

# By the class name that diffusers gives them.
CLASSES = {
    cls.class_name: cls
    for cls in (CogVideoXDDIM, CogVideoXDPM, FlowMatchEuler, FlowMatchLCM, UniPC)
}


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a diffusers `scheduler_config.json` describes.

    Args:
      config: the parsed file; `_class_name` chooses the class.

    Raises:
      ConfigError: a ValueError, if `_class_name` is missing or not supported, or the
        class refuses options; lists all of them.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(
            "scheduler config",
            [f"expected a JSON object, found a {type(config).__name__}"],
        )
    found = config.get("_class_name")
    if not isinstance(found, str) or found not in CLASSES:
        raise ConfigError(
            "scheduler config",
            [
                f"expected _class_name to be one of {sorted(CLASSES)}, "
                f"found {brief(found)}"
            ],
        )
    if found == FlowMatchEuler.class_name and config.get("stochastic_sampling") is True:
        # The same rule under another name.
        rest = {k: v for k, v in config.items() if k != "stochastic_sampling"}
        return FlowMatchLCM.from_config(rest | {"_class_name": FlowMatchLCM.class_name})
    return CLASSES[found].from_config(config)


def few_step(
    num_steps: int = 4, *, shift: float = 5.0, renoise: bool = False
) -> FlowMatchEuler:
    """The schedule of Wan models that were distilled to few steps.

    Noise levels 1, 1 - 1/n, ... 1/n before the shift: at 1000, 937.5, 833.3 and 625 for
    four steps and a shift of 5. Run it with a guidance scale of 1.

    Args:
      num_steps: that the model was distilled to.
      shift: that it was distilled with.
      renoise: add new noise after each step (`FlowMatchLCM`) instead of following the
        flow; as the model's authors do.

    >>> from sixbit_jax import few_step
    >>> [round(t, 1) for t in few_step(4, shift=5.0).timesteps(4).tolist()]
    [1000.0, 937.5, 833.3, 625.0]
    """
    kind = FlowMatchLCM if renoise else FlowMatchEuler
    return kind(shift=shift).with_sigmas(
        [1 - index / num_steps for index in range(num_steps)]
    )


__all__ = [
    "CLASSES",
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "FlowMatchEuler",
    "FlowMatchLCM",
    "Scheduler",
    "SchedulerState",
    "UniPC",
    "few_step",
    "from_config",
]
