"""The error of this package."""

from sixbit_jax.reading.messages import bounded


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, and why: all reasons at once.

    What a file holds may be in the message; it is cut to a length that can be read.
    """

    def __init__(self, message: str):
        super().__init__(bounded(message))
