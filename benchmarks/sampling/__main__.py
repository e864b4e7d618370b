"""The sampling benchmark (`sixbit bench`) with PyTorch measured in the same run.

python -m benchmarks.sampling --model 5b --out FILE [--minutes 8]
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from sixbit_jax.benchmark import sampling


def peers(subject: Any) -> Callable[[], Iterator[dict]]:
    """PyTorch's compiled and eager programs for the same network and size."""
    from benchmarks.sampling.peers_torch import prepare_peers

    return prepare_peers(subject)


if __name__ == "__main__":
    sys.exit(sampling.main(module="benchmarks.sampling", peers=peers))
