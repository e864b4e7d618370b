"""MPQ-DMv2 (arXiv 2507.04290) as a tuning method: FZ-RMQ, OOLRI and MTRD together.

A reconstruction; see `mpq_dm`, `oolri` and `mtrd`. Every site's linear becomes

    y = Q(W + B' A') x + B A x

with Q the nearest level of each row's residual grid, whose numbers are trained along
with the adapters. Only one adapter is there in earnest: B A outside the quantizer, or
B' A' inside it; the other is zero and has learning rate 0, so that all variants and
all widths share one compiled program. Our choice: activations are not quantized while
tuning, as in Q-VDiT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from sixbit_jax.formats import rotate
from sixbit_jax.formats.applied import AppliedWeight
from sixbit_jax.formats.residual import MAX_BITS
from sixbit_jax.methods.mpq_dm.low_rank_init import (
    PLACEMENTS,
    Adapter,
    low_rank,
    zero_adapter,
)
from sixbit_jax.methods.mpq_dm.relation_distillation import (
    MTRDOptions,
    draw,
    empty_memory,
    frame_features,
    relation_divergence,
    remember,
)
from sixbit_jax.methods.mpq_dm.residual_weights import (
    SHARES,
    ResidualFit,
    Salience,
    branches_of,
    fit_residual,
    pack_residual,
)
from sixbit_jax.nn.applied_weight import CorrectedWeight
from sixbit_jax.nn.fake_quantize import levels_of
from sixbit_jax.quantizers.residual_fit import Levels, Method, basis
from sixbit_jax.tuning import method as tuning
from sixbit_jax.tuning.forward import Outputs
from sixbit_jax.tuning.losses import mean_squared_error
from sixbit_jax.tuning.trajectories import Batch

GROUPS = ("levels", "outside", "inside")


@dataclass(frozen=True)
class MPQDMOptions:
    """How a network is quantized, and where its adapters start.

    Attributes:
      weight_bits: n, 2 to 4, on average over the channels.
      activation_bits: per token, dynamic, 2 to 8.
      rotation: width of the block Hadamard folded into the weights; 0 for none.
      method, salience, shares: see `fz_rmq`; "uniform" with shares (0,) is a uniform
        grid, "uniform" with all shares MPQ-DM v1's bit assignment.
      rank: the rank of the adapters.
      placement: "outside", "inside", or None for no adapter.
      svd: start from the quantization error; otherwise B is zero.
      memory: the memory of MTRD.
      seed: the seed of A where there is no SVD.
    """

    weight_bits: int = 3
    activation_bits: int = 6
    rotation: int = 0
    method: Method = "joint"
    salience: Salience = "kurtosis"
    shares: tuple[float, ...] = SHARES
    rank: int = 32
    placement: str | None = "outside"
    svd: bool = True
    memory: MTRDOptions = field(default_factory=MTRDOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.placement not in (None, *PLACEMENTS):
            raise ValueError(
                f"placement: expected None or one of {PLACEMENTS}, found "
                f"{self.placement!r}"
            )
        levels_of(self.activation_bits)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weight", "levels", "branches", "table", "inside"),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class TunedResidual:
    """Q(W + B' A') with gradients to levels and adapter; quantized when read.

    Attributes:
      weight: W, [..., N, K], rotated already where the method rotates.
      levels: the levels of each row.
      branches: that each row has, [..., N].
      table: (q, 1, e1, e2) of every code, [..., codes, 4]; padded, codes may repeat.
      inside: the adapter inside the quantizer.
    """

    weight: Array
    levels: Levels
    branches: Array
    table: Array
    inside: Adapter

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        return tuple(self.weight.shape)

    def present(self) -> Levels:
        """The levels, amplitudes of absent branches 0 and without gradient."""
        levels = self.levels
        first = jnp.where(self.branches > 0, levels.first, 0.0)
        second = jnp.where(self.branches > 1, levels.second, 0.0)
        return levels._replace(first=first, second=second)

    def codes(self) -> UInt8[Array, "*batch N K"]:
        """The nearest code of every weight."""
        parts = jnp.moveaxis(self.table, -1, 0)[..., None, :]
        values: Any = sum(
            level[..., None] * part
            for level, part in zip(_in_table_order(self.present()), parts, strict=True)
        )
        unrounded = self.weight.astype(jnp.float32) + self.inside.matrix()
        unrounded, values = jax.lax.stop_gradient((unrounded, values))
        code = jnp.zeros(self.shape, jnp.uint8)
        least = jnp.abs(unrounded - values[..., :1])
        for number in range(1, values.shape[-1]):
            distance = jnp.abs(unrounded - values[..., number, None])
            code = jnp.where(distance < least, jnp.uint8(number), code)
            least = jnp.minimum(distance, least)
        return code

    def dequantize(self, dtype: Any = jnp.float32) -> Float[Array, "*batch N K"]:
        """The rounded matrix; straight-through with respect to the adapter."""
        code = self.codes().astype(jnp.int32)
        flat = code.reshape(*code.shape[:-2], -1, 1)
        value: Any = 0.0
        levels = _in_table_order(self.present())
        for column, level in enumerate(levels):
            own = jnp.take_along_axis(self.table[..., column, None], flat, -2)
            value = value + level[..., None] * own.reshape(code.shape)
        inside = self.inside.matrix()
        through = inside - jax.lax.stop_gradient(inside)
        return (value + through).astype(dtype)


def _in_table_order(levels: Levels) -> tuple[Array, Array, Array, Array]:
    return levels.scale, levels.offset, levels.first, levels.second


@partial(jax.tree_util.register_dataclass, data_fields=("weight",), meta_fields=("by",))
@dataclass(frozen=True, eq=False)
class RotatedWeight(AppliedWeight):
    """A corrected weight of W H that rotates the activation it is given.

    Attributes:
      weight: the weight that multiplies the rotated activation.
      by: width of the block Hadamard.
    """

    weight: CorrectedWeight
    by: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        return self.weight.shape

    def apply(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """The product with the rotated activation."""
        return self.weight.apply(rotate(x, self.by))


def mpq_dm_method(
    *, frames: int, text_rows: int = 0, draws: int = 256, rotation: int = 0
) -> tuning.Method:
    """Student and loss, for networks that `mpq_dm_start` prepared.

    Args:
      frames: frames of tokens.
      text_rows: text tokens before the video tokens in the residual stream.
      draws: features of other steps that each iteration draws.
      rotation: as in the options.
    """
    return tuning.Method(
        partial(student_params, rotation=rotation),
        partial(mpq_dm_loss, frames=frames, text_rows=text_rows, draws=draws),
        needs_features=True,
    )


def mpq_dm_start(
    model: Any,
    options: MPQDMOptions,
    *,
    num_steps: int,
    inputs: Mapping[str, Float[Array, "L M K"]] | None = None,
) -> tuning.Start:
    """Levels, adapters and an empty memory before tuning.

    Args:
      model: the network in full precision.
      options: bits, adapters, memory.
      num_steps: denoising steps of the trajectories.
      inputs: rows of the activation of every weight, for the share of salient
        channels; None searches it by the error of the weights.

    Returns:
      Groups "levels", "outside" and "inside".
    """
    params = nnx.state(model)
    names = tuning.weight_names(model)
    plain = tuning.weights_of(params, names)
    codes = np.resize(basis(options.weight_bits - 1), (2 ** (MAX_BITS + 1), 4))
    groups: tuning.Groups = {name: {} for name in GROUPS}
    frozen: dict[str, Any] = {"params": params, "weights": {}, "rows": {}}
    for number, name in enumerate(names):
        weight = rotate(plain[name].astype(jnp.float32), options.rotation)
        given = None if inputs is None else rotate(inputs[name], options.rotation)
        fit = fit_residual(
            weight,
            options.weight_bits,
            inputs=given,
            method=options.method,
            salience=options.salience,
            shares=options.shares,
        )
        table = jnp.broadcast_to(codes, (*weight.shape[:-2], *codes.shape))
        frozen["weights"][name] = weight
        frozen["rows"][name] = {
            "branches": branches_of(fit.selection),
            "position": fit.selection.position,
            "num_salient": fit.selection.num_salient,
            "table": table,
        }
        groups["levels"][name] = fit.levels._asdict()
        for placement in PLACEMENTS:
            adapter = zero_adapter(weight.shape, options.rank)
            if placement == options.placement:
                adapter = _first_adapter(weight, fit, options, number)
            groups[placement][name] = adapter._asdict()
    width = model.config.dim
    return tuning.Start(groups, frozen, empty_memory(num_steps, width, options.memory))


def _first_adapter(
    weight: Array, fit: ResidualFit, options: MPQDMOptions, number: int
) -> Adapter:
    if options.svd:
        rounded = pack_residual(weight, fit, bits=options.weight_bits).dequantize()
        return low_rank(weight - rounded, options.rank)
    adapter = zero_adapter(weight.shape, options.rank)
    key = jax.random.fold_in(jax.random.key(options.seed), number)
    bound = weight.shape[-1] ** -0.5
    down = jax.random.uniform(key, adapter.down.shape, minval=-bound, maxval=bound)
    return adapter._replace(down=down)


def tuned_weight(
    trainable: tuning.Groups, frozen: Mapping[str, Any], name: str
) -> TunedResidual:
    """A quantizer with its present values, by the name of the weight."""
    rows = frozen["rows"][name]
    return TunedResidual(
        frozen["weights"][name],
        Levels(**trainable["levels"][name]),
        rows["branches"],
        rows["table"],
        Adapter(**trainable["inside"][name]),
    )


def student_params(
    trainable: tuning.Groups, frozen: Mapping[str, Any], *, rotation: int = 0
) -> nnx.State:
    """The student's parameters, their activations unquantized."""
    made: dict[str, AppliedWeight] = {}
    for name in frozen["weights"]:
        outside = Adapter(**trainable["outside"][name])
        weight = CorrectedWeight(tuned_weight(trainable, frozen, name), *outside)
        made[name] = RotatedWeight(weight, rotation) if rotation else weight
    return tuning.with_weights(frozen["params"], made)


def mpq_dm_loss(
    memory: Any,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    frames: int,
    text_rows: int,
    draws: int,
) -> tuning.LossResult:
    """MSE + lambda KL(p_teacher || p_student) over a draw of the memory.

    The memory then takes the teacher's features of this batch.
    """
    if student.features is None or teacher.features is None:
        raise ValueError("MTRD: expected features of student and teacher, found none")
    error = mean_squared_error(student.prediction, teacher.prediction)
    pooled = partial(frame_features, frames=frames, text_rows=text_rows)
    truth = jax.lax.stop_gradient(pooled(teacher.features))
    memory, contrast = draw(jax.lax.stop_gradient(memory), draws)
    divergence = relation_divergence(
        pooled(student.features), truth, contrast, memory.temperature
    )
    loss = error + memory.weight * divergence
    memory = remember(memory, truth, jnp.asarray(batch.step))
    return tuning.LossResult(loss, memory, {"mse": error, "divergence": divergence})


def with_memory(start: tuning.Start, memory: MTRDOptions) -> tuning.Start:
    """The same start with an empty memory of other numbers."""
    steps, _, width = start.extra.features.shape
    return start._replace(extra=empty_memory(steps, width, memory))


__all__ = [
    "GROUPS",
    "MPQDMOptions",
    "RotatedWeight",
    "TunedResidual",
    "mpq_dm_loss",
    "mpq_dm_method",
    "mpq_dm_start",
    "student_params",
    "tuned_weight",
    "with_memory",
]
