"""Q-VDiT after tuning: what is folded, what is stored, and how large it is.

Step sizes, zero points and the adapter inside the quantizer become codes on a grid;
what stays beside the packed matrix is one rank-one update.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax import nnx

from sixbit_jax.quantizers.q_vdit import (
    QVDiTOptions,
    student_weights,
)
from sixbit_jax.tuning.method import Groups, weight_names, weights_of, with_weights

_SCALE_BYTES, _ZERO_BYTES, _ESTIMATOR_BYTES = 4, 1, 2


@partial(jax.jit, static_argnames="text_rows")
def _rounded(trainable: Groups, frozen: Any, *, text_rows: int) -> dict[str, Any]:
    weights = student_weights(trainable, frozen, text_rows=text_rows)
    return {
        name: replace(weight, weight=weight.dequantize())
        for name, weight in weights.items()
    }


def fixed_params(
    trainable: Groups, frozen: Mapping[str, Any], *, text_rows: int = 0
) -> nnx.State:
    """The tuned network with its rounded weights as plain float32 matrices.

    For measurements: sampling does not quantize the weights anew in every step.

    Args:
      trainable, frozen: as `q_vdit_start` and the loop made them.
      text_rows: as in `q_vdit_method`.
    """
    weights = _rounded(trainable, dict(frozen), text_rows=text_rows)
    return with_weights(frozen["params"], weights)


def stored_bytes(model: Any, options: QVDiTOptions, *, estimator: bool = True) -> int:
    """Bytes of the whole network: packed sites, everything else in bfloat16.

    Args:
      model: the network in full precision.
      options: bits and scope.
      estimator: count a and b (bfloat16) and M (one factor per frame is neglected).
    """
    names = set(weight_names(model))
    params = nnx.state(model)
    sites = weights_of(params, tuple(sorted(names)))
    every = sum(leaf.size for leaf in jax.tree.leaves(params))
    total = 2 * (every - sum(weight.size for weight in sites.values()))
    for name, weight in sites.items():
        *lead, rows, columns = weight.shape
        layers = math.prod(lead)
        total += weight.size * options.bits_of(name)[0] // 8
        total += layers * rows * (_SCALE_BYTES + _ZERO_BYTES)
        if estimator:
            total += layers * (rows + columns) * _ESTIMATOR_BYTES
    return total


__all__ = ["fixed_params", "stored_bytes"]
