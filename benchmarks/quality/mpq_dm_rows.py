"""The rows of the MPQ-DMv2 table, and the numbers of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.quality.q_vdit_rows import Settings as SharedSettings
from sixbit_jax.methods.mpq_dm.method import MPQDMOptions
from sixbit_jax.methods.mpq_dm.residual_weights import SHARES

ROTATION = 128
NO_SHARE = (0.0,)


class Configuration(NamedTuple):
    """Mean bits of weights, and bits of activations."""

    weight_bits: int
    activation_bits: int


CONFIGURATIONS = {
    "w3a6": Configuration(3, 6),
    "w2a6": Configuration(2, 6),
    "w4a8": Configuration(4, 8),
}


class Variant(NamedTuple):
    """One row.

    Attributes:
      description: one line.
      quantizer: "uniform", "v1", "greedy", "rmq" or "rmq_error".
      placement: the placement of the adapter, or None.
      svd: whether the adapter starts from the quantization error.
      tuned: whether levels and adapter are tuned.
      mtrd: the relation loss beside the mean squared error.
      rotated: whether the weights are rotated.
    """

    description: str
    quantizer: str
    placement: str | None = None
    svd: bool = True
    tuned: bool = False
    mtrd: bool = False
    rotated: bool = False


QUANTIZERS = {
    "uniform": ("uniform", "kurtosis", NO_SHARE),
    "v1": ("uniform", "kurtosis", SHARES),
    "greedy": ("greedy", "kurtosis", SHARES),
    "rmq": ("joint", "kurtosis", SHARES),
    "rmq_error": ("joint", "error", SHARES),
    "rmq_equal": ("joint", "kurtosis", NO_SHARE),
}
"""Method, salience and shares of `fz_rmq`."""

_OUT = "outside"
VARIANTS = {
    "uniform": Variant("least-squares uniform grids", "uniform"),
    "v1": Variant("MPQ-DM v1's bit assignment", "v1"),
    "greedy": Variant("residual branches fitted one after the other", "greedy"),
    "rmq": Variant("FZ-RMQ", "rmq"),
    "rmq_equal": Variant("FZ-RMQ, one branch for every channel", "rmq_equal"),
    "rmq_error": Variant("FZ-RMQ, salience by error instead", "rmq_error"),
    "rmq_svd": Variant("FZ-RMQ + OOLRI, not tuned", "rmq", _OUT),
    "rmq_svd_inside": Variant("FZ-RMQ + adapter inside, not tuned", "rmq", "inside"),
    "uniform_rotated": Variant("uniform grids, rotated", "uniform", rotated=True),
    "rmq_rotated": Variant("FZ-RMQ, rotated", "rmq", rotated=True),
    "q_vdit": Variant("Q-VDiT, all parts, tuned as long", "q_vdit", tuned=True),
    "uniform_tuned": Variant(
        "uniform grids + adapter from zero, tuned", "uniform", _OUT, False, True
    ),
    "v1_tuned": Variant(
        "v1's assignment + adapter inside from zero, tuned", "v1", "inside", False, True
    ),
    "rmq_tuned": Variant("FZ-RMQ, levels tuned", "rmq", tuned=True),
    "rmq_lora": Variant("FZ-RMQ + adapter from zero, tuned", "rmq", _OUT, False, True),
    "rmq_oolri": Variant("FZ-RMQ + OOLRI, tuned", "rmq", _OUT, True, True),
    "rmq_oolri_inside": Variant(
        "FZ-RMQ + SVD adapter inside, tuned", "rmq", "inside", True, True
    ),
    "rmq_mtrd": Variant(
        "FZ-RMQ + adapter from zero + MTRD, tuned", "rmq", _OUT, False, True, True
    ),
    "uniform_oolri_mtrd": Variant(
        "uniform grids + OOLRI + MTRD, tuned", "uniform", _OUT, True, True, True
    ),
    "all": Variant("FZ-RMQ + OOLRI + MTRD, tuned", "rmq", _OUT, True, True, True),
    "all_rotated": Variant(
        "FZ-RMQ + OOLRI + MTRD, tuned, rotated", "rmq", _OUT, True, True, True, True
    ),
}

COMPARISONS = (
    ("v1", "uniform"),
    ("rmq", "uniform"),
    ("rmq", "v1"),
    ("rmq", "greedy"),
    ("rmq", "rmq_equal"),
    ("rmq_error", "rmq"),
    ("rmq_svd", "rmq"),
    ("rmq_svd", "rmq_svd_inside"),
    ("rmq_rotated", "rmq"),
    ("rmq_rotated", "uniform_rotated"),
    ("uniform_rotated", "uniform"),
    ("rmq_lora", "uniform_tuned"),
    ("rmq_oolri", "rmq_lora"),
    ("rmq_oolri", "rmq_oolri_inside"),
    ("rmq_mtrd", "rmq_lora"),
    ("all", "rmq_oolri"),
    ("all", "rmq_mtrd"),
    ("all", "uniform_oolri_mtrd"),
    ("all", "uniform_tuned"),
    ("all", "v1_tuned"),
    ("all", "q_vdit"),
    ("all_rotated", "all"),
)
"""(variant, variant): paired differences in PSNR within each configuration."""


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Numbers of a run; those of the Q-VDiT table, and of adapters and memory.

    Attributes:
      captions, tune_captions, iterations, batch, sweep_iterations, steps, guidance,
        dtype, iterations_per_call, frames: as there.
      rank: the rank of the adapters.
      capacity, draws: entries of the memory, and how many are drawn.
      levels_rate, adapter_rate: learning rates; 0 searches them.
      temperature, mtrd_weight: those of MTRD; 0 searches them.
      calibration: activation rows that choose the share of salient channels.
      q_vdit_rates: learning rates of the row `q_vdit`, by its groups.
    """

    captions: int = 32
    iterations: int = 400
    sweep_iterations: int = 100
    inner_rank: int = 1
    rank: int = 4
    capacity: int = 128
    draws: int = 256
    levels_rate: float = 0.0
    adapter_rate: float = 0.0
    temperature: float = 0.0
    mtrd_weight: float = 0.0
    calibration: int = 512
    rates: Sequence[float] | None = (3e-4, 1e-2, 1e-2, 0.0)


SWEEP = {
    "levels": (3e-5, 1e-4, 3e-4, 1e-3),
    "outside": (3e-4, 1e-3, 3e-3, 1e-2),
    "weight": (0.01, 0.1, 1.0),
    "temperature": (0.05, 0.1, 0.3),
    "length": (16, 64),
}
"""Tried one after the other at 3 bits: learning rates, then numbers of MTRD."""


def options_of(bits: int, variant: Variant, settings: Settings) -> MPQDMOptions:
    """How a variant quantizes."""
    method, salience, shares = QUANTIZERS[variant.quantizer]
    return MPQDMOptions(
        weight_bits=bits,
        rotation=ROTATION if variant.rotated else 0,
        method=method,  # pyrefly: ignore[bad-argument-type]
        salience=salience,  # pyrefly: ignore[bad-argument-type]
        shares=shares,
        rank=settings.rank,
        placement=variant.placement,
        svd=variant.svd,
    )


Row = tuple[str, str]


def names_of(only: Sequence[str]) -> list[Row]:
    """(configuration, variant) of the rows that are asked for.

    Raises:
      ValueError: a part that no row has.
    """
    unknown = [part for part in only if part not in (*CONFIGURATIONS, *VARIANTS)]
    if unknown:
        raise ValueError(
            f"--only: expected some of {[*CONFIGURATIONS, *VARIANTS]}, found {unknown}"
        )
    configurations = [c for c in CONFIGURATIONS if c in only] or list(CONFIGURATIONS)
    variants = [v for v in VARIANTS if v in only] or list(VARIANTS)
    return [
        (c, v)
        for c in configurations
        for v in variants
        # Q-VDiT's estimator is defined from 3 bits on.
        if v != "q_vdit" or CONFIGURATIONS[c].weight_bits >= 3
    ]
