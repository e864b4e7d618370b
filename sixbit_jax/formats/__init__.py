"""Number formats as validated pytrees."""

from sixbit_jax.formats.int8 import Int8Array
from sixbit_jax.formats.nvfp4 import NVFP4Array
from sixbit_jax.formats.rotation import rotate

__all__ = ["Int8Array", "NVFP4Array", "rotate"]
