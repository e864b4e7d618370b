"""Where videos go: one file or a folder, and what says how each was made."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sixbit_jax.files import DestinationError, kind_of, replaced_file, shown, write_text
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.pipeline import Video
from sixbit_jax.pipelines.settings import VideoSettings
from sixbit_jax.policies import attention_density
from sixbit_jax.versions import versions

MADE_BY = "sixbit generate"
SUFFIXES = (".mp4", ".gif")
_PACKAGES = ("jax", "jaxlib", "flax")


@dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
      number: the number of the prompt, from 1.
      prompt: text.
      seed: the seed of the noise.
      settings: the settings of the video.
      first, last: files of the pictures that it begins and ends with, or None.
      facts: what says which pictures they were.
    """

    number: int
    prompt: str
    seed: int
    settings: VideoSettings
    first: Path | None = None
    last: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def plan_jobs(shots: Sequence[Any], *, videos: int, seed: int) -> list[Job]:
    """The videos of a list of prompts, with seeds that follow each other.

    Args:
      shots: prompts with their pictures and settings, of the names that `Job` has.
      videos: how many of each.
      seed: the seed of the first of each.
    """
    return [
        Job(number, s.prompt, seed + i, s.settings, s.first, s.last, s.facts)
        for number, s in enumerate(shots, start=1)
        for i in range(videos)
    ]


class Outputs:
    """The files of a run; checked before it, written one by one as they are made.

    Args:
      out: a file with one of `SUFFIXES` for one job, or a folder.
      jobs: all videos of the run.
      facts: what else decides what a video looks like.
      inputs: what is read, and must not be written into.

    Raises:
      DestinationError: if the place cannot be written to, or holds files that this
        command did not write; lists all problems.
    """

    def __init__(
        self,
        out: Path,
        jobs: Sequence[Job],
        facts: dict[str, Any],
        *,
        inputs: Iterable[Path] = (),
    ):
        self.out, self.jobs, self.facts = out, jobs, facts
        self.single = out.suffix in SUFFIXES and kind_of(out) != "a directory"
        self._check(inputs)
        if not self.single:
            out.mkdir(exist_ok=True)

    def _check(self, inputs: Iterable[Path]) -> None:
        out = self.out
        if self.single and len(self.jobs) > 1:
            raise DestinationError(
                f"--out: expected a folder for {len(self.jobs)} videos, found the file "
                f"{shown(out)}"
            )
        if not self.single and out.suffix and kind_of(out) is None:
            raise DestinationError(
                f"--out: expected a folder or a file with {' or '.join(SUFFIXES)}, "
                f"found {shown(out)}"
            )
        parent = out.absolute().parent
        if not parent.is_dir():
            raise DestinationError(f"--out: expected a folder {shown(parent)} for it")
        kind = kind_of(out)
        if kind not in (None, "a file" if self.single else "a directory"):
            raise DestinationError(f"--out: expected a new place, found {kind} there")
        for source in inputs:
            if source.resolve() in (out.resolve(), *out.resolve().parents):
                raise DestinationError(
                    f"--out: expected a place outside of {shown(source)}, found "
                    f"{shown(out)}"
                )
        _check_suffix(self.path(self.jobs[0]).suffix)
        try:
            probe = parent if self.single or kind is None else out
            with replaced_file(probe / ".sixbit-can-write") as file:
                file.touch()
            (probe / ".sixbit-can-write").unlink(missing_ok=True)
        except OSError as error:
            raise DestinationError(
                f"--out: expected a folder to write to, found {error}"
            ) from error
        foreign = [
            shown(self.description(job))
            for job in self.jobs
            if kind_of(self.description(job)) is not None and self._read(job) is None
        ]
        if foreign:
            raise DestinationError(
                f"--out: expected no other files there than those of {MADE_BY}, found "
                f"{', '.join(foreign[:4])}"
            )

    def path(self, job: Job) -> Path:
        """The video's file."""
        if self.single:
            return self.out
        return self.out / f"{job.number:04d}-seed{job.seed}.mp4"

    def description(self, job: Job) -> Path:
        """The JSON file beside it."""
        return self.path(job).with_suffix(".json")

    def _read(self, job: Job) -> dict[str, Any] | None:
        try:
            found = json.loads(self.description(job).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        ours = isinstance(found, dict) and found.get("made_by") == MADE_BY
        return found if ours else None

    def _recipe(self, job: Job) -> dict[str, Any]:
        """Everything that decides what the video looks like, as JSON values."""
        values = {
            "made_by": MADE_BY,
            "prompt": job.prompt,
            "seed": job.seed,
            "settings": dataclasses.asdict(job.settings),
            **self.facts,
            **job.facts,
        }
        return json.loads(json.dumps(values))

    def missing(self) -> list[Job]:
        """The jobs of a folder whose videos are not there yet; all, for one file."""
        if self.single:
            return list(self.jobs)
        found = []
        for job in self.jobs:
            earlier, wanted = self._read(job), self._recipe(job)
            same = earlier is not None and all(
                earlier.get(key) == value for key, value in wanted.items()
            )
            if not same or not self.path(job).is_file():
                found.append(job)
        return found

    def write(self, job: Job, video: Video) -> dict[str, Any]:
        """Writes a video and its description; returns the description."""
        from sixbit_jax.report.video import write_gif, write_mp4

        recipe = self._recipe(job)
        path = self.path(job)
        if path.suffix == ".gif":
            write_gif(path, video.frames, fps=job.settings.fps, scale=1)
        else:
            write_mp4(
                path,
                video.frames,
                fps=job.settings.fps,
                scale=1,
                comment=json.dumps(recipe),
            )
        found = recipe | {
            "cut": video.cut,
            "skip_fraction": float(video.trace.skip.mean()),
            "density": attention_density(
                video.trace.attention_density, video.trace.skip
            ),
            "seconds": {k: round(v, 3) for k, v in video.seconds.items()},
            "peak_bytes": memory.peak_memory(),
            "versions": versions(*_PACKAGES),
        }
        write_text(self.description(job), json.dumps(found, indent=1) + "\n")
        return found


def _check_suffix(suffix: str) -> None:
    from sixbit_jax.report.video import mp4_available

    if suffix == ".mp4" and not mp4_available():
        raise DestinationError(
            "MP4: expected ffmpeg (pip install 'sixbit-jax[video]'), found none; "
            "--out FILE.gif needs nothing"
        )


__all__ = ["MADE_BY", "Job", "Outputs", "plan_jobs"]
