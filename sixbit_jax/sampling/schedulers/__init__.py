"""Schedulers: pure functions over a state pytree, one file each."""

from collections.abc import Mapping
from typing import Any

from sixbit_jax.config_schema import ConfigError
from sixbit_jax.reading.messages import brief
from sixbit_jax.sampling.schedulers.base import Scheduler, SchedulerState
from sixbit_jax.sampling.schedulers.cogvideox_ddim import CogVideoXDDIM
from sixbit_jax.sampling.schedulers.cogvideox_dpm import CogVideoXDPM
from sixbit_jax.sampling.schedulers.flow_match_euler import FlowMatchEuler
from sixbit_jax.sampling.schedulers.unipc import UniPC

# By the class name that diffusers gives them.
CLASSES = {
    cls.class_name: cls for cls in (CogVideoXDDIM, CogVideoXDPM, FlowMatchEuler, UniPC)
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
    return CLASSES[found].from_config(config)


__all__ = [
    "CLASSES",
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "FlowMatchEuler",
    "Scheduler",
    "SchedulerState",
    "UniPC",
    "from_config",
]
