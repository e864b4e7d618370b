"""The error of this package."""


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, and why: all reasons at once."""
