"""Which implementation of an operation runs: the first that can, or the one named.

Every operation lists its implementations, fastest first. `implementation=None` takes
the first one that supports the device and the inputs; a name is never replaced.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax

HOPPER = (9, 0)
# Multiprocessors of a Hopper data-centre GPU, used where no GPU can be asked (lowering
# for CUDA on another machine).
HOPPER_MULTIPROCESSORS = 132


class MissingPackageError(NotImplementedError):
    """An implementation that needs an optional package which is not installed.

    Attributes:
        install: the command that installs it.
    """

    def __init__(self, message: str, *, install: str):
        super().__init__(message)
        self.install = install


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was run for an operation, and why not something faster.

    Attributes:
        operation: its name.
        implementation: the name of what runs, `None` if nothing can.
        definition: whether that is the plain JAX definition, slow on a GPU.
        refusals: (implementation, reason) of those before it.
        install: a command that would help, or `None`.
    """

    operation: str
    implementation: str | None
    definition: bool
    refusals: tuple[tuple[str, str], ...]
    install: str | None


@dataclasses.dataclass(frozen=True)
class Implementation[T]:
    """One way to compute an operation.

    Attributes:
        name: what users pass as `implementation=`.
        run: computes the result; raises NotImplementedError, with the reason, for
            dtypes or shapes it cannot do.
        needs: raises NotImplementedError if the device is not one it can run on. Not
            asked when the user names the implementation, so that it can be lowered
            for a device this machine does not have.
        definition: whether it is a definition in plain JAX that a GPU runs slowly,
            passes over float32 arrays; falling to it on a GPU warns once.
    """

    name: str
    run: Callable[[], T]
    needs: Callable[[], None] = lambda: None
    definition: bool = False


def compute_capability() -> tuple[int, int] | None:
    """Compute capability of the default device, `None` if it is not an NVIDIA GPU."""
    if jax.default_backend() != "gpu":
        return None
    version = getattr(jax.devices()[0], "compute_capability", None)
    if version is None:
        return None
    major, _, minor = str(version).partition(".")
    return int(major), int(minor or 0)


def multiprocessors() -> int:
    """Multiprocessors of the default GPU; those of a Hopper if there is none."""
    if jax.default_backend() != "gpu":
        return HOPPER_MULTIPROCESSORS
    return int(getattr(jax.devices()[0], "core_count", HOPPER_MULTIPROCESSORS))


def needs_hopper() -> None:
    """Raises NotImplementedError unless the default device is a Hopper GPU."""
    found = compute_capability()
    if found != HOPPER:
        device = "no NVIDIA GPU" if found is None else f"compute capability {found}"
        raise NotImplementedError(
            f"mosaic_gpu kernels use Hopper's wgmma and need compute capability "
            f"{HOPPER}; the default device has {device}"
        )


def needs_gpu() -> None:
    """Raises NotImplementedError unless the default device is an NVIDIA GPU."""
    if compute_capability() is None:
        raise NotImplementedError("needs an NVIDIA GPU, found none")


def needs_block_scaled_mma() -> None:
    """Raises NotImplementedError unless the default device multiplies NVFP4 itself."""
    found = compute_capability()
    if found is None or found[0] not in (10, 12):
        device = "no NVIDIA GPU" if found is None else f"compute capability {found}"
        raise NotImplementedError(
            "block-scaled FP4 products need a Blackwell GPU (compute capability 10.x "
            f"or 12.x); the default device has {device}"
        )


def dispatch[T](
    operation: str,
    implementations: Sequence[Implementation[T]],
    implementation: str | None,
) -> T:
    """Runs the named implementation, or the first that does not refuse.

    Args:
        operation: name of the operation, for messages.
        implementations: candidates, fastest first.
        implementation: a name, or `None`.

    Returns:
        What the implementation returns.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named implementation refuses the inputs.
        ExceptionGroup: every implementation refuses; holds all reasons.
    """
    if implementation is not None:
        for candidate in implementations:
            if candidate.name == implementation:
                return candidate.run()
        raise ValueError(
            f"{operation} has no implementation {implementation!r}; it has "
            f"{[candidate.name for candidate in implementations]}"
        )
    refusals = []
    for candidate in implementations:
        try:
            _needs_leave(candidate.name)
            candidate.needs()
            found = candidate.run()
        except NotImplementedError as refusal:
            refusal.add_note(f"while trying {operation} as {candidate.name!r}")
            refusals.append((candidate.name, refusal))
            continue
        _tell(operation, candidate, refusals)
        return found
    _tell(operation, None, refusals)
    raise ExceptionGroup(
        f"no implementation of {operation} supports these inputs",
        [refusal for _, refusal in refusals],
    )


_left_out: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
    "left_out", default=frozenset()
)


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, these implementations run only where they are named."""
    token = _left_out.set(_left_out.get() | set(names))
    try:
        yield
    finally:
        _left_out.reset(token)


def _needs_leave(name: str) -> None:
    if name in _left_out.get():
        raise NotImplementedError(f"{name} is left out here")


_watchers: contextvars.ContextVar[tuple[list[Choice], ...]] = contextvars.ContextVar(
    "watchers", default=()
)
_warned: set[str] = set()


@contextlib.contextmanager
def choices() -> Iterator[list[Choice]]:
    """A list that every choice made inside is added to, and no warnings meanwhile."""
    made: list[Choice] = []
    token = _watchers.set((*_watchers.get(), made))
    try:
        yield made
    finally:
        _watchers.reset(token)


def _tell(
    operation: str,
    chosen: Implementation | None,
    refusals: Sequence[tuple[str, NotImplementedError]],
) -> None:
    """Tells watchers, or warns once per operation of a definition on a GPU."""
    installs = (getattr(refusal, "install", None) for _, refusal in refusals)
    choice = Choice(
        operation=operation,
        implementation=None if chosen is None else chosen.name,
        definition=chosen is not None and chosen.definition,
        refusals=tuple((name, str(refusal)) for name, refusal in refusals),
        install=next((command for command in installs if command), None),
    )
    for made in _watchers.get():
        made.append(choice)
    if _watchers.get() or not choice.definition or operation in _warned:
        return
    capability = compute_capability()
    if capability is None:
        return
    _warned.add(operation)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.refusals)
    advice = f"{choice.install} would help" if choice.install else reasons
    warnings.warn(
        f"{operation} runs as its definition in plain JAX on this GPU (compute "
        f"capability {capability[0]}.{capability[1]}), which is slow: {advice}. "
        "`sixbit doctor` lists what each operation runs as",
        stacklevel=2,
    )
