"""One display for all parts of a run: encoding, sampling, decoding, with time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TITLES = {
    "text": "prompts",
    "picture": "pictures",
    "sampling": "steps",
    "vae": "frames",
}


@contextmanager
def progress(
    videos: int, *, quiet: bool
) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """Yields (part, done, all) -> None, and a function that prints a line above.

    Args:
      videos: how many are made.
      quiet: draw nothing; lines are printed all the same.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if quiet:
        yield (lambda part, done, count: None), say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        tasks: dict[str, TaskID] = {}
        current = 0

        def tell(part: str, done: int, count: int) -> None:
            nonlocal current
            if part == "sampling" and done <= 1 and "vae" in tasks:
                # The next video of a list begins.
                for name in ("sampling", "vae"):
                    if name in tasks:
                        display.remove_task(tasks.pop(name))
                current += 1
            if part not in tasks:
                title = _TITLES[part]
                if videos > 1 and part not in ("text", "picture"):
                    title = f"{title} of video {current + 1}/{videos}"
                tasks[part] = display.add_task(title, total=count)
            display.update(tasks[part], completed=done, total=count)

        yield tell, say
