"""Q-VDiT (arXiv 2505.22167): quantizer, Token-aware Quantization Estimator, loss.

Every linear of the chosen sites becomes

    Y = x_q Q(W + B' A')^T + (M * (x_q . a)) b^T

with Q an asymmetric grid per output channel whose range is searched and whose step
sizes are trained through the rounding; a, b the rank-one estimator (TQE) and M its
factor for each frame; B' A' an optional low-rank adapter inside the quantizer, which
the released code adds and the paper does not mention. Differences from that code: the
estimator is weighted by M, not by 1 + M, and frames are an axis of the latents, never
reshaped out of channels.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.nn.applied_weight import CorrectedWeight
from sixbit_jax.nn.fake_quantize import fake_quantize_rows, levels_of
from sixbit_jax.quantizers.range_search import search_range
from sixbit_jax.sampling.noise import seed_key
from sixbit_jax.tuning.forward import Outputs
from sixbit_jax.tuning.losses import mean_squared_error, temporal_maintenance
from sixbit_jax.tuning.method import (
    Groups,
    LossResult,
    Method,
    Start,
    weight_names,
    weights_of,
    with_weights,
)
from sixbit_jax.tuning.trajectories import Batch

SCOPES = ("all", "attention")
TMD_WEIGHT = 100.0


@dataclass(frozen=True)
class QVDiTOptions:
    """How a network is quantized.

    Attributes:
      weight_bits: 3 to 8.
      activation_bits: 6 or 8 (3 to 8 work), per token, dynamic.
      scope: "all" linears of the blocks, or "attention": the feed-forward linears
        stay at `feed_forward_bits`, as in the released configurations.
      feed_forward_bits: of weights and activations there; for activations by our
        choice.
      searched_range: search the range of every channel; otherwise round to nearest.
      inner_rank: rank of the adapter inside the quantizer; 0: none.
      tmd_weight: the weight of the relation loss beside the mean squared error.
      seed: the seed of the estimator's a and the adapter's A'.
    """

    weight_bits: int = 4
    activation_bits: int = 6
    scope: str = "all"
    feed_forward_bits: int = 8
    searched_range: bool = True
    inner_rank: int = 0
    tmd_weight: float = TMD_WEIGHT
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        for name in ("weight_bits", "activation_bits", "feed_forward_bits"):
            bits = getattr(self, name)
            if isinstance(bits, bool) or bits not in range(3, 9):
                problems.append(f"{name}: expected 3 to 8, found {bits!r}")
        if self.scope not in SCOPES:
            problems.append(f"scope: expected one of {SCOPES}, found {self.scope!r}")
        if self.inner_rank < 0:
            problems.append(f"inner_rank: expected >= 0, found {self.inner_rank}")
        if not self.tmd_weight >= 0:
            problems.append(f"tmd_weight: expected >= 0, found {self.tmd_weight}")
        if problems:
            raise ValueError("Q-VDiT:\n  " + "\n  ".join(problems))

    def bits_of(self, name: str) -> tuple[int, int]:
        """Weight and activation bits of a weight by its dotted name."""
        feed_forward = ".ff." in name or ".ffn." in name
        if self.scope == "attention" and feed_forward:
            return self.feed_forward_bits, self.feed_forward_bits
        return self.weight_bits, self.activation_bits


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weight", "scale", "zero_point", "levels", "inner_up", "inner_down"),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class TunedWeight:
    """Q(W + B' A') with gradients to step sizes and adapter; quantized when read.

    Attributes:
      weight: W, [..., N, K].
      scale, zero_point: those of each row, [..., N].
      levels: highest code of each matrix, [...].
      inner_up, inner_down: B' [..., N, r] and A' [..., r, K], or None.
    """

    weight: Array
    scale: Array
    zero_point: Array
    levels: Array
    inner_up: Array | None = None
    inner_down: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        return tuple(self.weight.shape)

    def unrounded(self) -> Float[Array, "*batch N K"]:
        """W + B' A', float32."""
        weight = self.weight.astype(jnp.float32)
        if self.inner_up is None:
            return weight
        return weight + jnp.einsum(
            "...nr,...rk->...nk", self.inner_up, self.inner_down, precision="highest"
        )

    def dequantize(self, dtype: Any = jnp.float32) -> Float[Array, "*batch N K"]:
        """The rounded matrix."""
        found = fake_quantize_rows(
            self.unrounded(), self.scale, self.zero_point, self.levels
        )
        return found.astype(dtype)


def q_vdit_method(*, text_rows: int = 0) -> Method:
    """Student and loss, for networks that `q_vdit_start` prepared.

    Args:
      text_rows: text tokens before the video tokens in the residual stream; 0 for
        networks with cross-attention.
    """
    return Method(partial(student_params, text_rows=text_rows), q_vdit_loss)


def q_vdit_start(
    model: Any,
    options: QVDiTOptions,
    *,
    frames: int = 1,
    factors: Mapping[str, Float[Array, "L G"]] | None = None,
    text_rows: int = 0,
) -> Start:
    """Grids, estimators and adapters before tuning.

    The estimator starts at zero: a is Kaiming uniform, b is 0. So does the adapter.

    Args:
      model: the network in full precision.
      options: bits and scope.
      frames: frames of tokens, for M.
      factors: M of every weight, from `frame_factors`; None starts from ones, which
        is the estimator without M if their learning rate is 0.
      text_rows: as in `q_vdit_method`.

    Returns:
      Groups "step_sizes", "estimator" (a and b), "factors" (M), and "inner" where
      there is an adapter.
    """
    params = nnx.state(model)
    weights = weights_of(params, weight_names(model))
    trainable, grids = _values(options, weights)
    groups = frames + bool(text_rows)
    found = {}
    for name, weight in weights.items():
        expected = (*weight.shape[:-2], groups)
        start = None if factors is None else factors[name]
        found[name] = jnp.ones(expected) if start is None else jnp.asarray(start)
        if found[name].shape != expected:
            raise ValueError(
                f"factors of {name}: expected {expected}, found {found[name].shape}"
            )
    extra = {"tmd_weight": jnp.float32(options.tmd_weight)}
    return Start(
        {**trainable, "factors": found}, {"params": params, "grids": grids}, extra
    )


# One program: value by value, starting takes longer than tuning a small network.
@partial(jax.jit, static_argnums=0)
def _values(
    options: QVDiTOptions, weights: dict[str, Array]
) -> tuple[Groups, dict[str, dict[str, Array]]]:
    """Step sizes, estimators and adapters, and the grids."""
    step_sizes, estimator, inner, grids = {}, {}, {}, {}
    key, shrinks = seed_key(options.seed), 50 if options.searched_range else 1
    for name, weight in weights.items():
        lead, (rows, columns) = weight.shape[:-2], weight.shape[-2:]
        levels = jnp.full(lead, levels_of(options.bits_of(name)[0]), jnp.float32)
        grid = search_range(weight, levels, shrinks=shrinks)
        step_sizes[name] = grid.scale
        grids[name] = {"zero_point": grid.zero_point, "levels": levels}
        keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())))
        for group, rank, own in (
            (estimator, 1, keys[0]),
            (inner, options.inner_rank, keys[1]),
        ):
            if rank:
                group[name] = {
                    "down": _kaiming(own, (*lead, rank, columns)),
                    "up": jnp.zeros((*lead, rows, rank)),
                }
    trainable = {"step_sizes": step_sizes, "estimator": estimator}
    return {**trainable, **({"inner": inner} if inner else {})}, grids


def _kaiming(key: Array, shape: tuple[int, ...]) -> Array:
    """PyTorch's Kaiming uniform with a = sqrt(5): +-1 / sqrt(K)."""
    bound = 1.0 / math.sqrt(shape[-1])
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def student_weights(
    trainable: Groups, frozen: Mapping[str, Any], *, text_rows: int = 0
) -> dict[str, CorrectedWeight]:
    """The weights of the student by name, their activations unquantized."""
    plain = weights_of(frozen["params"], tuple(frozen["grids"]))
    made = {}
    for name, weight in plain.items():
        grid, inner = frozen["grids"][name], trainable.get("inner", {}).get(name)
        tuned = TunedWeight(
            weight,
            trainable["step_sizes"][name],
            grid["zero_point"],
            grid["levels"],
            None if inner is None else inner["up"],
            None if inner is None else inner["down"],
        )
        made[name] = CorrectedWeight(
            tuned,
            trainable["estimator"][name]["down"],
            trainable["estimator"][name]["up"],
            trainable["factors"][name],
            text_rows=text_rows,
        )
    return made


def student_params(
    trainable: Groups, frozen: Mapping[str, Any], *, text_rows: int = 0
) -> nnx.State:
    """The student's parameters."""
    weights = student_weights(trainable, frozen, text_rows=text_rows)
    return with_weights(frozen["params"], weights)


def q_vdit_loss(
    extra: dict[str, Array], student: Outputs, teacher: Outputs, batch: Batch
) -> LossResult:
    """MSE + w sum_i KL(D_i^teacher || D_i^student), w = 100 (section 3.3)."""
    del batch
    error = mean_squared_error(student.prediction, teacher.prediction)
    relations = temporal_maintenance(student.prediction, teacher.prediction)
    loss = error + extra["tmd_weight"] * relations
    return LossResult(loss, extra, {"mse": error, "relations": relations})


def activation_levels(model: Any, options: QVDiTOptions) -> dict[str, int]:
    """Highest activation code of every weight, for `with_activation_bits`."""
    names = weight_names(model)
    return {name: levels_of(options.bits_of(name)[1]) for name in names}


def average_bits(model: Any, options: QVDiTOptions) -> tuple[float, float]:
    """Mean bits of the quantized weights, and of activations weighted by MACs.

    Step sizes, zero points and estimators are not counted; `weight_bytes` of a packed
    model counts them.
    """
    names = weight_names(model)
    sizes = weights_of(nnx.state(model), names)
    weights = sum(options.bits_of(n)[0] * sizes[n].size for n in names)
    activations = sum(options.bits_of(n)[1] * sizes[n].size for n in names)
    total = sum(sizes[n].size for n in names)
    return weights / total, activations / total


__all__ = [
    "QVDiTOptions",
    "TunedWeight",
    "activation_levels",
    "average_bits",
    "q_vdit_loss",
    "q_vdit_method",
    "q_vdit_start",
    "student_params",
    "student_weights",
]
