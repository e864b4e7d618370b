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
import jax.numpy as jnp
from flax import nnx

from sixbit_jax.formats import UniformArray
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.formats.uniform_grid import UniformGrid, encode_uniform
from sixbit_jax.methods.q_vdit.method import (
    QVDiTOptions,
    TunedWeight,
    student_weights,
)
from sixbit_jax.nn.applied_weight import CorrectedWeight
from sixbit_jax.tuning.method import Groups, weight_names, weights_of, with_weights

_SCALE_BYTES, _ZERO_BYTES, _ESTIMATOR_BYTES = 4, 1, 4


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
      estimator: count a and b (float32); M, one number per frame, is neglected.
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


@partial(jax.jit, static_argnames=("bits", "text_rows"))
def _packed(
    weight: CorrectedWeight, *, bits: int, text_rows: int
) -> tuple[CorrectedArray, jax.Array]:
    """The weight in its stored form, and the least of its step sizes."""
    tuned: TunedWeight = weight.weight
    grid = UniformGrid(tuned.scale, tuned.zero_point)
    codes = encode_uniform(tuned.unrounded(), grid, bits)
    factors = weight.factors
    if factors is None:
        factors = jnp.ones((*weight.shape[:-2], 1))
    packed = CorrectedArray(
        UniformArray.from_codes(codes, grid, bits),
        weight.down,
        weight.up,
        factors,
        text_rows=text_rows,
    )
    return packed, tuned.scale.min()


def packed_model(
    model: Any,
    trainable: Groups,
    frozen: Mapping[str, Any],
    options: QVDiTOptions,
    *,
    text_rows: int = 0,
) -> Any:
    """The tuned network in its stored form: packed codes and a rank-one update.

    Step sizes become the scales of `UniformArray`, the adapter inside the quantizer
    disappears in the codes. The activation's width is left to the route of the policy
    (`Route.INT6`, `Route.INT8`).

    Args:
      model: the network in full precision; gives everything that is not quantized.
      trainable, frozen: as `q_vdit_start` and the loop made them.
      options: those of `q_vdit_start`.
      text_rows: as in `q_vdit_method`.

    Returns:
      A model with a `CorrectedArray` at every site's linear.

    Raises:
      ValueError: a tuned step size is not positive.
    """
    graph, params = nnx.split(model)
    made, broken = {}, []
    weights = student_weights(trainable, frozen, text_rows=text_rows)
    for name, weight in weights.items():
        bits = options.bits_of(name)[0]
        made[name], least = _packed(weight, bits=bits, text_rows=text_rows)
        if not least > 0:
            broken.append(f"{name}: {float(least)}")
    if broken:
        raise ValueError(
            "expected positive step sizes (use a smaller learning rate for them), "
            f"found {', '.join(broken)}"
        )
    return nnx.merge(graph, with_weights(params, made))


__all__ = ["fixed_params", "packed_model", "stored_bytes"]
