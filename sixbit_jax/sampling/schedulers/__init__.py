"""Schedulers: pure functions over a state pytree, one file each."""

from collections.abc import Mapping
from typing import Any

from sixbit_jax.sampling.schedulers.base import Scheduler, SchedulerState
from sixbit_jax.sampling.schedulers.cogvideox_ddim import CogVideoXDDIM
from sixbit_jax.sampling.schedulers.cogvideox_dpm import CogVideoXDPM
from sixbit_jax.sampling.schedulers.flow_match_euler import FlowMatchEuler
from sixbit_jax.sampling.schedulers.unipc import UniPC

_CLASSES = (CogVideoXDDIM, CogVideoXDPM, FlowMatchEuler, UniPC)


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a diffusers `scheduler_config.json` describes.

    Args:
      config: the parsed file; `_class_name` chooses the class.

    Raises:
      ValueError: if `_class_name` is missing or not supported, or the class refuses
        an option.
    """
    classes = {cls.class_name: cls for cls in _CLASSES}
    found = config.get("_class_name")
    if found not in classes:
        raise ValueError(
            f"scheduler config: expected _class_name to be one of {sorted(classes)}, "
            f"found {found!r}"
        )
    return classes[found].from_config(config)


__all__ = [
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "FlowMatchEuler",
    "Scheduler",
    "SchedulerState",
    "UniPC",
    "from_config",
]
