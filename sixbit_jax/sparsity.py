"""How blocks of keys are chosen where attention is sparse: a program is made for it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["threshold", "radial", "window", "history"]
Order = Literal["frames", "morton", "hilbert"]


@dataclass(frozen=True)
class SparseWay:
    """The way of choosing; static, for each way is another compiled program.

    Attributes:
      kind: "threshold": the test of Sol-Attn (arXiv 2607.24027), whose `tau` is traced;
        "radial" (arXiv 2506.19852) and "window": fixed masks over frames; "history":
        LiteAttention's, what a step found negligible stays skipped in later steps.
      approximate: a skipped block counts as its mean key and mean value; otherwise it
        is dropped.
      width: the width of "radial": 1 is the paper's, less is sparser.
      frames: the reach of "window": how far apart frames attend to each other.
      order: the order of the video tokens inside the blocks of the network, see
        `nn.token_order`; masks over frames need "frames".
      blocks: queries of a tile and keys of a block; None is the kernel's. Another
        number is for studies of short videos, without kernels.

    Raises:
      ValueError: for values outside of these; lists all of them.
    """

    kind: Kind = "threshold"
    approximate: bool = True
    width: float = 1.0
    frames: int = 1
    order: Order = "frames"
    blocks: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.order not in get_args(Order):
            problems.append(
                f"order: expected one of {', '.join(get_args(Order))}, found "
                f"{self.order!r}"
            )
        elif self.order != "frames" and self.kind in ("radial", "window"):
            problems.append(
                f"order: expected 'frames' with the way {self.kind!r}, found "
                f"{self.order!r}"
            )
        if self.blocks is not None and (len(self.blocks) != 2 or min(self.blocks) < 1):
            problems.append(
                f"blocks: expected queries and keys, at least 1, found {self.blocks!r}"
            )
        if self.kind not in get_args(Kind):
            problems.append(
                f"way: expected one of {', '.join(get_args(Kind))}, found {self.kind!r}"
            )
        if not isinstance(self.approximate, bool):
            problems.append(
                f"approximate: expected True or False, found {self.approximate!r}"
            )
        if type(self.width) not in (int, float) or not 0 < self.width < math.inf:
            problems.append(
                f"width: expected a positive finite number, found {self.width!r}"
            )
        if type(self.frames) is not int or self.frames < 0:
            problems.append(
                f"frames: expected a whole number of at least 0, found {self.frames!r}"
            )
        if problems:
            raise ValueError("sparse attention:\n  " + "\n  ".join(problems))


__all__ = ["Kind", "Order", "SparseWay"]
