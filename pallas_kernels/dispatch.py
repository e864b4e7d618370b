"""Which implementation of an operation runs: the first that can, or the one named.

Every operation lists its implementations, fastest first. `implementation=None` takes
the first one that supports the device and the inputs; a name is never replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

HOPPER = (9, 0)
# Multiprocessors of a Hopper data-centre GPU, used where no GPU can be asked (lowering
# for CUDA on another machine).
HOPPER_MULTIPROCESSORS = 132


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
    """

    name: str
    run: Callable[[], T]
    needs: Callable[[], None] = lambda: None


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
            candidate.needs()
            return candidate.run()
        except NotImplementedError as refusal:
            refusal.add_note(f"while trying {operation} as {candidate.name!r}")
            refusals.append(refusal)
    raise ExceptionGroup(
        f"no implementation of {operation} supports these inputs", refusals
    )
