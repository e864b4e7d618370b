"""Converted models on disk: `sixbit.json` and one Orbax item per block.

Blocks are separate items so that writing and loading stream: neither needs more host
memory than one block. `load` stacks them on the device.
"""

from sixbit_jax.checkpoint.directory import CheckpointError, new_directory
from sixbit_jax.checkpoint.header import (
    FORMAT_VERSION,
    Header,
    Item,
    ParameterSpec,
    Stack,
    read_header,
)
from sixbit_jax.checkpoint.items import (
    CheckpointReader,
    CheckpointWriter,
    foreign,
    value_of,
    verify,
)
from sixbit_jax.checkpoint.model import load, parameter_shapes, save
from sixbit_jax.checkpoint.summary import Summary, summarize

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "CheckpointReader",
    "CheckpointWriter",
    "Header",
    "Item",
    "ParameterSpec",
    "Stack",
    "Summary",
    "foreign",
    "load",
    "new_directory",
    "parameter_shapes",
    "read_header",
    "save",
    "summarize",
    "value_of",
    "verify",
]
