"""The arithmetic that one site uses in one step."""

from enum import IntEnum


class Route(IntEnum):
    """Arithmetic of a site; traced as int32, ordered as `lax.switch` branches.

    Every route multiplies the one stored weight of a linear. The numbers stand in
    traces and policy files: new members go to the end.

    Attributes:
      NVFP4: blocks of 16 E2M1 values with E4M3 scales.
      INT8: symmetric, one scale per token.
      BF16: activation as it is.
      INT4, INT6: uniform asymmetric grid over each token's range.
      ARQ4, ARQ8: DVD-Quant's Auto-scaling Rotated Quantization with one live scale per
        block of channels, then the grid of INT4 or INT8.
      ARQ4_CHANNEL, ARQ8_CHANNEL: its definition, with one live scale per channel, which
        no integer product can run: fake-quantized.
      ARQ_NVFP4: one live scale per channel in front of NVFP4, fake-quantized.
    """

    NVFP4 = 0
    INT8 = 1
    BF16 = 2
    INT4 = 3
    INT6 = 4
    ARQ4 = 5
    ARQ8 = 6
    ARQ4_CHANNEL = 7
    ARQ8_CHANNEL = 8
    ARQ_NVFP4 = 9

    @property
    def bits(self) -> int:
        """Width of the activation on this route, without its scales."""
        return (4, 8, 16, 4, 6, 4, 8, 4, 8, 4)[self]
