"""Pictures of `sixbit generate`: its options, and which video gets which."""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

# Pictures of so many videos are in memory at once.
_MOST_AT_ONCE = 32


@dataclass(frozen=True)
class Shot:
    """One prompt with the pictures that its videos begin and end with.

    Attributes:
      prompt: text.
      first, last: picture files, or None.
      settings: of the videos, of the first picture's size where none was asked for.
      facts: what says which pictures they were.
    """

    prompt: str
    first: Path | None
    last: Path | None
    settings: Any
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(group: Any, size: Any) -> None:
    """Adds the options; `size` reads 720x480."""
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--image",
        metavar="FILE",
        type=Path,
        help="PNG, JPEG or WebP that every video begins with",
    )
    one.add_argument(
        "--images",
        metavar="DIR|FILE.txt",
        type=Path,
        help="a folder of pictures, or a list of them, a file per line: one for each "
        "prompt, or all of them with one prompt",
    )
    group.add_argument(
        "--last-image",
        metavar="FILE",
        type=Path,
        help="that every video ends with, for networks that take one",
    )
    group.add_argument(
        "--area",
        metavar="WIDTHxHEIGHT",
        type=size,
        help="as many pixels, in the picture's proportions (as published)",
    )
    group.add_argument(
        "--fit",
        choices=("stretch", "crop"),
        default="stretch",
        help="how a picture of other proportions fills --size (stretch, as published)",
    )


def plan_shots(
    args: argparse.Namespace, pipe: Any, prompts: Sequence[str], given: dict[str, Any]
) -> list[Shot]:
    """Every prompt with its pictures, each of which is read once and checked.

    Args:
      args: the parsed arguments of the command.
      pipe: the pipeline.
      prompts: texts.
      given: arguments of `pipe.settings`.

    Raises:
      ValueError: for pictures that cannot be read, or that the pipeline does not take
        or lacks, and lists of different lengths.
    """
    from sixbit_jax.pipelines.pictures import pictures_of

    no_picture = args.image is None and args.images is None
    if args.area is not None and (args.size is not None or no_picture):
        raise ValueError("--area: expected a picture, and no --size beside it")
    area = None if args.area is None else args.area[0] * args.area[1]
    images = [args.image] if args.images is None else pictures_of(args.images)
    if len(images) == 1:
        images = images * len(prompts)
    if len(prompts) == 1:
        prompts = list(prompts) * len(images)
    if len(images) != len(prompts):
        raise ValueError(
            f"--images: expected one or as many as prompts, {len(prompts)}, found "
            f"{len(images)}"
        )
    known: dict[Path | None, tuple[Any, dict[str, Any]]] = {}
    for image in images:
        if image not in known:
            pictures = pipe.pictures(image, args.last_image)
            settings = pipe.settings(pictures=pictures, area=area, **given)
            known[image] = (settings, _facts(args, image))
    return [
        Shot(prompt, image, args.last_image, *known[image])
        for prompt, image in zip(prompts, images, strict=True)
    ]


def _facts(args: argparse.Namespace, image: Path | None) -> dict[str, Any]:
    if image is None:
        return {}
    found: dict[str, Any] = {"fit": args.fit}
    for name, file in (("image", image), ("last_image", args.last_image)):
        if file is not None:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            found[name] = {"name": file.name, "sha256": digest}
    return found


def batches(jobs: Sequence[Any]) -> Iterator[list[Any]]:
    """Jobs of one size that follow each other, not too many at once."""
    for _, group in groupby(jobs, key=lambda job: job.settings):
        same = list(group)
        # Without pictures there is nothing to hold in memory.
        step = _MOST_AT_ONCE if same[0].first is not None else len(same)
        for start in range(0, len(same), step):
            yield same[start : start + step]


def read_for(pipe: Any, jobs: Sequence[Any]) -> list[Any] | None:
    """The pictures of some jobs, each file read once; None where there are none."""
    if jobs[0].first is None:
        return None
    found: dict[Path, Any] = {}
    for job in jobs:
        if job.first not in found:
            found[job.first] = pipe.pictures(job.first, job.last)
    return [found[job.first] for job in jobs]
