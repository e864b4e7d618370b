"""MPQ-DMv2 after tuning: rounded for measurements, packed for storage."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.formats import ResidualArray
from sixbit_jax.formats.applied import AppliedWeight
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.methods.mpq_dm.low_rank_init import Adapter
from sixbit_jax.methods.mpq_dm.method import (
    MPQDMOptions,
    RotatedWeight,
    tuned_weight,
)
from sixbit_jax.methods.mpq_dm.residual_weights import (
    ResidualFit,
    Selection,
    pack_residual,
)
from sixbit_jax.nn.applied_weight import CorrectedWeight
from sixbit_jax.tuning import method as tuning


@partial(jax.jit, static_argnames="rotation")
def fixed_params(
    trainable: tuning.Groups,
    frozen: Mapping[str, Any],
    activation_levels: Float[Array, ""],
    *,
    rotation: int = 0,
) -> nnx.State:
    """The tuned network with rounded weights as plain matrices, for measurements.

    Args:
      trainable, frozen: as `mpq_dm_start` and the loop made them.
      activation_levels: highest activation code, 2^bits - 1.
      rotation: as in the options.
    """
    made: dict[str, AppliedWeight] = {}
    for name, plain in frozen["weights"].items():
        rounded = tuned_weight(trainable, frozen, name).dequantize()
        lead = plain.shape[:-2]
        weight = CorrectedWeight(
            rounded,
            *Adapter(**trainable["outside"][name]),
            activation_levels=jnp.full(lead, activation_levels, jnp.float32),
        )
        made[name] = RotatedWeight(weight, rotation) if rotation else weight
    return tuning.with_weights(frozen["params"], made)


def packed_model(
    model: Any,
    trainable: tuning.Groups,
    frozen: Mapping[str, Any],
    options: MPQDMOptions,
) -> Any:
    """The tuned network in its stored form.

    `ResidualArray` at every site's linear, in a `CorrectedArray` where there is an
    adapter outside; an adapter inside disappears in the codes. The activation's width
    is left to the route of the policy (`Route.INT6`, `Route.INT8`).

    Raises:
      ValueError: rotation and an adapter outside, which is not a stored format.
    """
    outside = options.placement == "outside"
    if outside and options.rotation:
        raise ValueError(
            "packed form: expected no rotation beside an adapter outside the "
            f"quantizer, found rotation {options.rotation}"
        )
    graph, params = nnx.split(model)
    made = {}
    for name in frozen["weights"]:
        rows, tuned = frozen["rows"][name], tuned_weight(trainable, frozen, name)
        packed = pack_residual(
            tuned.weight + tuned.inside.matrix(),
            ResidualFit(
                tuned.present(),
                Selection(rows["position"], rows["num_salient"], jnp.zeros((0,))),
            ),
            bits=options.weight_bits,
            rotation=options.rotation,
        )
        made[name] = _corrected(packed, trainable["outside"][name], outside)
    return nnx.merge(graph, tuning.with_weights(params, made))


def _corrected(
    packed: ResidualArray, adapter: Mapping[str, Array], outside: bool
) -> ResidualArray | CorrectedArray:
    if not outside:
        return packed
    ones = jnp.ones((*packed.shape[:-2], 1), jnp.float32)
    return CorrectedArray(packed, adapter["down"], adapter["up"], ones)


__all__ = ["fixed_params", "packed_model"]
