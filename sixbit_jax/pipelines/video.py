"""What a pipeline makes, and how long each part of it took."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from sixbit_jax.pipelines.settings import VideoSettings
from sixbit_jax.sampling.trace import Trace


@dataclass(frozen=True, eq=False)
class Video:
    """What a pipeline makes.

    Attributes:
      frames: RGB, uint8 [frames, height, width, 3].
      fps: frames per second that the network was trained on.
      prompt, negative_prompt: what it was made from.
      seed: the seed of the noise.
      settings: size, steps, guidance.
      trace: plans and stats of all steps.
      seconds: by part: "text", "picture" where there is one, "sampling", "vae",
        compiling included where it happened; and "load", from disk, of everything that
        this video needed.
      cut: the end of the prompt that did not fit into the text encoder; empty if all
        of it did.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: int
    prompt: str
    negative_prompt: str
    seed: int
    settings: VideoSettings
    trace: Trace
    seconds: dict[str, float] = field(default_factory=dict)
    cut: str = ""


class Clock:
    """Seconds by part, those of loading apart."""

    def __init__(self, loaded: Callable[[], float]):
        self._loaded, self._before = loaded, loaded()
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("text", "sampling", "vae", "load"), 0.0)

    def ends(self, part: str) -> None:
        """What has passed since the last end was this part, but for the loading."""
        now, loaded = time.perf_counter(), self._loaded()
        loading = loaded - self._before
        passed = now - self._began - loading
        self._seconds[part] = self._seconds.get(part, 0.0) + passed
        self._seconds["load"] += loading
        self._began, self._before = now, loaded

    def read(self) -> dict[str, float]:
        return dict(self._seconds)

    def restart(self, *parts: str) -> None:
        self._began = time.perf_counter()
        self._seconds |= dict.fromkeys(parts, 0.0)


__all__ = ["Clock", "Video"]
