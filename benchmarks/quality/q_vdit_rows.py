"""The rows of the Q-VDiT table, and the numbers of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sixbit_jax.demo.model import LATENT_SHAPE

GROUPS = ("step_sizes", "estimator", "factors", "inner")
SCOPES = {"all_linears": "all", "attention": "attention"}
SWEEP = {
    "step_sizes": (1e-4, 3e-4, 1e-3, 3e-3),
    "estimator": (3e-3, 1e-2, 3e-2),
    "factors": (0.0, 1e-3, 1e-2),
    "inner": (1e-4, 1e-3, 3e-3, 1e-2),
}
"""Learning rates tried, one group after the other."""


class Configuration(NamedTuple):
    """Bits of weights and activations."""

    weight_bits: int
    activation_bits: int


CONFIGURATIONS = {
    "w3a6": Configuration(3, 6),
    "w3a8": Configuration(3, 8),
    "w4a6": Configuration(4, 6),
}


class Variant(NamedTuple):
    """One row of the ablation.

    Attributes:
      description: one line.
      tuned: groups that are trained.
      with_m: M from the activations; otherwise ones.
      tmd: weight of the relation loss beside the mean squared error.
      searched: ranges are searched.
    """

    description: str
    tuned: tuple[str, ...] = ()
    with_m: bool = False
    tmd: float = 0.0
    searched: bool = True


_TQE = ("step_sizes", "estimator", "factors")
VARIANTS = {
    "rtn": Variant("round to nearest", searched=False),
    "range": Variant("range search, not tuned"),
    "steps": Variant("+ trained step sizes (MSE)", ("step_sizes",)),
    "tqe_no_m": Variant("+ TQE without M (MSE)", ("step_sizes", "estimator")),
    "tqe": Variant("+ TQE with M (MSE)", _TQE, with_m=True),
    "tmd": Variant("+ TMD, no TQE", ("step_sizes",), tmd=100.0),
    "all": Variant("TQE with M + TMD", _TQE, with_m=True, tmd=100.0),
    "all_tmd10": Variant(
        "TQE with M + TMD at a tenth of its weight", _TQE, with_m=True, tmd=10.0
    ),
    "all_inner": Variant(
        "TQE with M + TMD + adapter inside the quantizer",
        (*_TQE, "inner"),
        with_m=True,
        tmd=100.0,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Sizes and numbers of a run.

    Attributes:
      captions: evaluated.
      tune_captions: whose trajectories are tuned on; as many as an eighth of them,
        at least one, are held out for the search of the learning rates.
      iterations, batch: those of every tuning run.
      sweep_iterations: iterations of every run of the search.
      inner_rank: the inner rank of the adapter inside the quantizer.
      steps, guidance: those of sampling.
      dtype: compute dtype of the network, tuned and sampled.
      iterations_per_call: iterations of one compiled call.
      rates: learning rates by `GROUPS`; None searches them.
      frames: the frames of the videos.
    """

    captions: int = 64
    tune_captions: int = 32
    iterations: int = 1500
    batch: int = 16
    sweep_iterations: int = 200
    inner_rank: int = 32
    steps: int = 50
    guidance: float = 6.0
    dtype: str = "bfloat16"
    iterations_per_call: int = 25
    rates: Sequence[float] | None = None
    frames: int = LATENT_SHAPE[0]


Row = tuple[Configuration, str, str]


def names_of(only: Sequence[str]) -> list[Row]:
    """The rows that are asked for, by parts of their names.

    Raises:
      ValueError: a part that no row has.
    """
    kinds: dict[str, list[str]] = {}
    for part in only:
        for kind, known in (
            ("configuration", CONFIGURATIONS),
            ("scope", SCOPES),
            ("variant", VARIANTS),
        ):
            if part in known:
                kinds.setdefault(kind, []).append(part)
                break
        else:
            known = [*CONFIGURATIONS, *SCOPES, *VARIANTS]
            raise ValueError(f"--only: expected some of {known}, found {part!r}")
    return [
        (CONFIGURATIONS[c], s, v)
        for s in kinds.get("scope", SCOPES)
        for c in kinds.get("configuration", CONFIGURATIONS)
        for v in kinds.get("variant", VARIANTS)
    ]
