"""Runs mutations of small files, and sorts what becomes of each.

    python -m tests.fuzz.campaign --minutes 5 --seed 1

Three outcomes are right: a clean error, the result of the unchanged file, and for
files that say something else in a valid way (a configuration with another epsilon)
what they say, where a second reading of the file agrees. Everything else fails: another
exception, a message that nobody can read, seconds without an end, memory, or a result
that differs and that nobody can account for.
"""

import argparse
import contextlib
import json
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations import Mutation

EQUAL = "verified equal"
ERROR = "clean error"
OTHER = "another valid file"
RIGHT = (ERROR, EQUAL, OTHER)
SECONDS = 5.0
MEMORY = 400 * 2**20
# Of messages.
_LONGEST, _WIDEST = 20_000, 1200


@dataclass(frozen=True)
class Target:
    """Files of one kind, and what reads them.

    Attributes:
      name: for the table.
      files: contents by path, of the unchanged directory.
      mutated: the paths of which one is changed in each case.
      mutations: that are drawn from.
      read: what the library makes of a directory; the same for equal contents.
      accounts: whether a directory with another result says just that in a valid way.
    """

    name: str
    files: Mapping[str, bytes]
    mutated: Sequence[str]
    mutations: Sequence[Mutation]
    read: Callable[[Path], Any]
    accounts: Callable[[Path, Any], bool] = lambda directory, result: False


@dataclass(frozen=True)
class Case:
    """One mutation and its outcome.

    Attributes:
      target, number: with the seed, what makes it again.
      mutation: its name.
      outcome: one of `RIGHT`, or what was wrong.
      detail: of a wrong one.
    """

    target: str
    number: int
    mutation: str
    outcome: str
    detail: str = ""


@dataclass
class Table:
    """Outcomes by target."""

    seed: int
    counts: dict[str, Counter] = field(default_factory=dict)
    wrong: list[Case] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Counts a case."""
        outcome = case.outcome if case.outcome in RIGHT else "WRONG"
        self.counts.setdefault(case.target, Counter())[outcome] += 1
        if outcome == "WRONG":
            self.wrong.append(case)

    @property
    def total(self) -> int:
        """Number of cases."""
        return sum(sum(counter.values()) for counter in self.counts.values())

    def __str__(self) -> str:
        columns = (*RIGHT, "WRONG")
        lines = [f"{'target':<16}" + "".join(f"{c:>20}" for c in (*columns, "all"))]
        for name, counts in [*self.counts.items(), ("all", sum_of(self.counts))]:
            cells = [counts[column] for column in columns] + [sum(counts.values())]
            lines.append(f"{name:<16}" + "".join(f"{cell:>20,}" for cell in cells))
        lines.append(f"seed {self.seed}")
        for case in self.wrong[:20]:
            lines.append(
                f"{case.target} #{case.number} ({case.mutation}): {case.outcome}: "
                f"{case.detail[:400]}"
            )
        if len(self.wrong) > 20:
            lines.append(f"... and {len(self.wrong) - 20} more")
        return "\n".join(lines)


def sum_of(counts: Mapping[str, Counter]) -> Counter:
    """All targets together."""
    return sum(counts.values(), Counter())


class _Hang(BaseException):
    """Not an `Exception`: nothing that is tested catches it."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def unreadable(error: BaseException) -> str:
    """What is wrong with an error as an answer to a user; "" if nothing is."""
    kind = type(error).__name__
    if not isinstance(error, ValueError) or isinstance(
        error, UnicodeError | json.JSONDecodeError
    ):
        return f"{kind}: {error}"
    text = str(error)
    if not text or len(text) > _LONGEST:
        return f"{kind} with a message of {len(text):,} characters"
    widest = max(map(len, text.splitlines()))
    if widest > _WIDEST:
        return f"{kind} with a line of {widest:,} characters"
    if not all(line.isprintable() for line in text.split("\n")):
        return f"{kind} with letters that do not print: {text!a}"
    return ""


def run_case(target: Target, number: int, seed: int, expected: Any) -> Case:
    """Makes one mutation, reads it, and sorts the outcome.

    Args:
      target: what is changed.
      number: of the case; with the seed, it makes the same mutation again.
      seed: of the campaign.
      expected: what `target.read` gives for the unchanged files.
    """
    rng = Random(f"{seed} {target.name} {number}")
    mutation = rng.choice(target.mutations)
    path = rng.choice(target.mutated)
    data = mutation(rng, target.files[path])
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        directory = Path(folder)
        for name, content in target.files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data if name == path else content)
        before = _memory()
        outcome, detail = _outcome(target, directory, expected)
        grown = _memory() - before
    if outcome in RIGHT and grown > MEMORY:
        outcome, detail = "memory", f"{grown:,} bytes"
    return Case(target.name, number, f"{mutation.__name__} {path}", outcome, detail)


def _outcome(target: Target, directory: Path, expected: Any) -> tuple[str, str]:
    try:
        with _limited(SECONDS):
            result = target.read(directory)
    except _Hang:
        return "hang", f"more than {SECONDS} s"
    except Exception as error:
        wrong = unreadable(error)
        return ("error that is not clean", wrong) if wrong else (ERROR, "")
    if result == expected:
        return EQUAL, ""
    try:
        with _limited(SECONDS):
            agreed = target.accounts(directory, result)
    except _Hang:
        return "hang", "of the second reading"
    except Exception as error:
        return "refused by the second reader only", f"{error!r}; read as {result}"
    if agreed:
        return OTHER, ""
    return "silent difference", str(result)


def run(
    targets: Sequence[Target],
    *,
    seed: int,
    cases: int | Mapping[str, int] | None = None,
    minutes: float | None = None,
) -> Table:
    """Runs a campaign.

    Args:
      targets: what is changed; in turns, or each so often as `cases` says.
      seed: of the mutations.
      cases: number of all cases, or of each target.
      minutes: stops after this time in place of a number.
    """
    table = Table(seed)
    expected = {}
    for target in targets:
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            for name, content in target.files.items():
                file = Path(folder) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            expected[target.name] = target.read(Path(folder))
    if isinstance(cases, Mapping):
        plan = [(t, n) for t in targets for n in range(cases.get(t.name, 0))]
    elif cases is not None:
        plan = [(targets[i % len(targets)], i // len(targets)) for i in range(cases)]
    else:
        assert minutes is not None
        plan = None
    end = time.monotonic() + 60 * (minutes or 0)
    number = 0
    while plan is None or number < len(plan):
        if plan is None:
            if time.monotonic() >= end:
                break
            target, case = targets[number % len(targets)], number // len(targets)
        else:
            target, case = plan[number]
        table.add(run_case(target, case, seed, expected[target.name]))
        number += 1
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `make fuzz`: 1 if anything was wrong."""
    from tests.fuzz.targets import make_targets

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--cases", type=int, help="in place of minutes: how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only these")
    parser.add_argument("--case", type=int, help="make one case of one target again")
    args = parser.parse_args(argv)
    targets = [t for t in make_targets() if not args.target or t.name in args.target]
    if args.case is not None:
        print(again(targets[0], args.case, args.seed))
        return 0
    table = run(targets, seed=args.seed, cases=args.cases, minutes=args.minutes)
    print(table)
    return 1 if table.wrong else 0


def again(target: Target, number: int, seed: int) -> str:
    """The changed bytes of a case, and the traceback or result that they give."""
    import traceback

    rng = Random(f"{seed} {target.name} {number}")
    mutation = rng.choice(target.mutations)
    path = rng.choice(target.mutated)
    data = mutation(rng, target.files[path])
    lines = [f"{mutation.__name__} {path}", repr(data[:3000])]
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        for name, content in target.files.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data if name == path else content)
        try:
            lines.append(str(target.read(Path(folder)))[:3000])
        except Exception:
            lines.append(traceback.format_exc()[:6000])
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
