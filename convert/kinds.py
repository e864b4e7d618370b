"""Quantizations of others that are not read: refused by name, not by a list of keys."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import named

_KEYS = {
    "bitsandbytes (nf4, fp4 or int8)": (
        r".*\.(weight\.(absmax|quant_map|nested_\w+|quant_state\..*)|SCB|weight_format)"
    ),
    "SVDQuant (Nunchaku)": r".*\.(wscales|wcscales|smooth_factor(_orig)?)",
    "GPTQ or AWQ": r".*\.(qzeros|g_idx)",
    "ModelOpt with AWQ (pre_quant_scale)": r".*\.pre_quant_scale",
    "quanto": r".*\.weight\._(data|scale|shift)",
    "float8 with scales per block (weight_scale_inv)": r".*\.weight_scale_inv",
}
# By `quant_method` of config.json.
_METHODS = {
    "bitsandbytes": "bitsandbytes (nf4, fp4 or int8)",
    "svdquant": "SVDQuant (Nunchaku)",
    "nunchaku": "SVDQuant (Nunchaku)",
    "gptq": "GPTQ or AWQ",
    "awq": "GPTQ or AWQ",
    "quanto": "quanto",
    "gguf": "GGUF",
}


def refuse_others(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
    """Refuses quantized weights that no part of the converter reads.

    Args:
      tensors: what the files hold.
      config: the network's `config.json`.

    Raises:
      ConversionError: names the kind, and the key or the field that tells it.
    """
    for kind, pattern in _KEYS.items():
        for name in tensors:
            if re.fullmatch(pattern, name):
                raise _refused(kind, named(name))
    for name, info in tensors.items():
        if name.endswith(".weight") and info.dtype == np.int8 and len(info.shape) == 2:
            raise _refused("int8", f"{named(name)} of int8")
        scale = tensors.get(f"{name}_scale")
        if scale is not None and _by_exponents(info, scale):
            raise _refused("MXFP8 or MXFP4", f"{named(name)} with scales per 32")
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = quantization.get("quant_method")
        if isinstance(method, str) and method.lower() in _METHODS:
            raise _refused(
                _METHODS[method.lower()],
                f"config.json quantization_config.quant_method {method!r}",
            )


def _by_exponents(weight: TensorInfo, scale: TensorInfo) -> bool:
    """Whether bytes that are powers of two scale blocks of 32 values."""
    if scale.dtype != np.uint8 or len(weight.shape) != 2 or len(scale.shape) != 2:
        return False
    columns = weight.shape[1] * (2 if weight.dtype == np.uint8 else 1)
    return columns % 32 == 0 and scale.shape == (weight.shape[0], columns // 32)


def _refused(kind: str, where: str) -> ConversionError:
    return ConversionError(
        "expected floating-point weights, scaled float8 or packed NVFP4, found "
        f"weights quantized by {kind} ({where}), which are not read; use the network's "
        "unquantized weights"
    )


__all__ = ["refuse_others"]
