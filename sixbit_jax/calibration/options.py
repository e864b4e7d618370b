"""What `calibrate` is asked for."""

from dataclasses import dataclass

import numpy as np

from sixbit_jax.policies import dmpq, pdr, tdc
from sixbit_jax.policies.parameters import default_of


@dataclass(frozen=True)
class CalibrationOptions:
    """What a policy is to reach, and which parts it has.

    Attributes:
      bits: mean activation width, 4 to 8.
      skips: share of the blocks to skip, below 1; 0: no delta cache.
      max_drift: skip as much as keeps the relative L2 distance of the latents from
        those without skips below this, in the place of `skips`.
      search_prompts: prompts to sample for each tau that is tried.
      max_skips, warmup, together, shared: those of `tdc`, whose defaults they have.
      residual, final_int8: those of `dmpq`; likewise.
      purify: whether `pdr` is in the policy, where blocks are skipped.
      outlier_ratio, refresh_int8: those of `pdr`; likewise.
      int8_attention: share of the recorded blocks, the least changing ones, whose
        limit gives 8-bit scores (`policies.int8_attention`); None: none.
      attention_share: share of the blocks of keys that self-attention computes, dense
        steps and blocks included (`policies.sparse_attention`); None: all.

    Raises:
      ValueError: for numbers out of range; lists all of them.
    """

    bits: float = 6.0
    skips: float = 0.3
    max_drift: float | None = None
    search_prompts: int = 2
    max_skips: int = default_of(tdc, "max_skips")
    warmup: int = default_of(tdc, "warmup")
    together: int | None = default_of(tdc, "together")
    shared: bool = default_of(tdc, "shared")
    residual: bool = default_of(dmpq, "residual")
    final_int8: int = default_of(dmpq, "final_int8")
    purify: bool = True
    outlier_ratio: float | None = default_of(pdr, "outlier_ratio")
    refresh_int8: bool = default_of(pdr, "refresh_int8")
    int8_attention: float | None = None
    attention_share: float | None = None

    def __post_init__(self) -> None:
        drift = self.max_drift
        problems = [
            f"{name}: expected {wanted}, found {found}"
            for name, wanted, found, fits in (
                ("bits", "4 to 8", self.bits, 4.0 <= self.bits <= 8.0),
                ("skips", "0 to below 1", self.skips, 0.0 <= self.skips < 1.0),
                (
                    "max_drift",
                    "a finite number above 0",
                    drift,
                    drift is None or 0 < drift < np.inf,
                ),
                (
                    "search_prompts",
                    "at least 1",
                    self.search_prompts,
                    self.search_prompts >= 1,
                ),
                *(
                    (name, "above 0 to 1", share, share is None or 0.0 < share <= 1.0)
                    for name, share in (
                        ("int8_attention", self.int8_attention),
                        ("attention_share", self.attention_share),
                    )
                ),
            )
            if not fits
        ]
        if problems:
            raise ValueError("calibration:\n  " + "\n  ".join(problems))

    @property
    def skipping(self) -> bool:
        """Whether the policy skips blocks."""
        return self.skips > 0 or self.max_drift is not None
