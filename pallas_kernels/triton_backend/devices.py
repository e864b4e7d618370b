"""What tile tables tell apart: classes of GPUs, by compute capability."""

from __future__ import annotations

import enum

from pallas_kernels import dispatch


class DeviceClass(enum.Enum):
    """GPUs that want the same tiles."""

    AMPERE = "A100: 163 KB of shared memory"
    SMALL = "RTX 30, 40 and 50, A10, L4, L40: 99 KB of shared memory"
    HOPPER = "H100, H200: 227 KB of shared memory, asynchronous products"
    BLACKWELL = "B200, GB300: 227 KB of shared memory"


# Largest shared memory of a thread block in bytes, from the CUDA programming guide.
_SHARED_MEMORY = {
    DeviceClass.AMPERE: 163 * 1024,
    DeviceClass.SMALL: 99 * 1024,
    DeviceClass.HOPPER: 227 * 1024,
    DeviceClass.BLACKWELL: 227 * 1024,
}


def class_of(capability: tuple[int, int] | None) -> DeviceClass:
    """The class of a compute capability.

    Devices that are not known, and none at all, count as the class that asks least.
    """
    if capability is None:
        return DeviceClass.SMALL
    if capability == (8, 0):
        return DeviceClass.AMPERE
    if capability[0] == 9:
        return DeviceClass.HOPPER
    if capability[0] in (10, 11):
        return DeviceClass.BLACKWELL
    return DeviceClass.SMALL


def device_class() -> DeviceClass:
    """The class of the default device."""
    return class_of(dispatch.compute_capability())


def shared_memory(kind: DeviceClass) -> int:
    """Bytes of shared memory that one thread block may use."""
    return _SHARED_MEMORY[kind]
