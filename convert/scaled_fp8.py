"""Weights in float8 with scales beside them: per tensor or per output channel.

    written by            weight     scale               left aside
    ComfyUI, Kijai        X.weight   X.scale_weight      X.scale_input, scaled_fp8
    ComfyUI (newer)       X.weight   X.weight_scale      X.input_scale, X.comfy_quant
    ModelOpt, LightX2V    X.weight   X.weight_scale      X.input_scale

A weight is float8 [N, K] and stands for weight x scale; the scale is one number, [N] or
[N, 1]. float8 without scales is a tensor like any other. `scaled_fp8` has no or two
elements, of which none is read; `comfy_quant` is JSON that names the format.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import brief, named, several

_FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
_SCALES = ("scale_weight", "weight_scale")
_ACTIVATIONS = ("scale_input", "input_scale")
# No tensor of the network: its dtype says which float8 was meant.
_MARK = "scaled_fp8"
_MARK_SIZE = 2
_NOTE = "comfy_quant"
_LARGEST_NOTE = 65_536


@dataclass(frozen=True)
class ScaledInfo(TensorInfo):
    """A scaled weight: `read` gives the values that it stands for, float32 [N, K].

    `dtype` is that of these values.

    Attributes:
      codes, scale: where the two parts lie.
    """

    codes: TensorInfo | None = None
    scale: TensorInfo | None = None

    @property
    def dtype_name(self) -> str:
        """For reports."""
        assert self.codes is not None
        return f"scaled {self.codes.dtype.name}"

    def read(self) -> np.ndarray:
        """Reads the weight and multiplies it by its scale."""
        assert self.codes is not None
        assert self.scale is not None
        scale = self.scale.read().astype(np.float32)
        if scale.size > 1:
            scale = scale.reshape(-1, *[1] * (len(self.shape) - 1))
        # Infinity is for the caller to refuse, who knows the name.
        with np.errstate(over="ignore"):
            return self.codes.read().astype(np.float32) * scale


def read_scaled(
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """Replaces every scaled weight and its scale by one `ScaledInfo`.

    Args:
      tensors: what the files hold.

    Returns:
      The tensors, and the names that were left out because they only concern
      activations or mark the file.

    Raises:
      ConversionError: lists scales that are missing, of another shape, or not finite
        and positive.
    """
    marks = [
        name
        for name, info in tensors.items()
        if name.rpartition(".")[2] == _MARK and math.prod(info.shape) <= _MARK_SIZE
    ]
    made: dict[str, TensorInfo] = {}
    left = set(marks)
    problems: list[str] = []
    for name, info in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if leaf != "weight" or info.dtype not in _FLOAT8:
            continue
        found = [n for part in _SCALES if (n := f"{stem}.{part}") in tensors]
        if not found and not (marks and len(info.shape) == 2):
            continue
        if len(found) != 1:
            said = " and ".join(found) or "neither"
            problems.append(
                f"{named(name)}: expected {' or '.join(_SCALES)} beside it, found "
                f"{said}"
            )
            continue
        scale = tensors[found[0]]
        problem = _scale_problem(info, scale)
        if problem is not None:
            problems.append(f"{named(found[0])}: {problem}")
            continue
        note = f"{stem}.{_NOTE}"
        if note in tensors and (problem := _note_problem(info, tensors[note])):
            problems.append(f"{named(note)}: {problem}")
            continue
        made[name] = ScaledInfo(
            dtype=np.dtype(np.float32),
            shape=info.shape,
            file=info.file,
            offset=info.offset,
            codes=info,
            scale=scale,
        )
        left |= {found[0], note}
        left |= {f"{stem}.{part}" for part in _ACTIVATIONS}
    problems += [
        f"{named(name)}: expected a float8 weight beside it, found another"
        for name in tensors
        if name.endswith(".scale_weight") and name not in left and not problems
    ]
    if problems:
        raise ConversionError(
            "\n  ".join(["float8 weights with scales:", *several(problems)])
        )
    rest = {name: info for name, info in tensors.items() if name not in left}
    unused = {n for n in left & tensors.keys() if not n.endswith(_SCALES)}
    return rest | made, tuple(sorted(unused))


def _scale_problem(weight: TensorInfo, scale: TensorInfo) -> str | None:
    """Why a scale is none of this weight, or None."""
    rows = weight.shape[0] if weight.shape else 1
    allowed = {(), (1,), (1, 1), (rows,), (rows, 1)}
    if not scale.is_float or scale.shape not in allowed:
        return (
            f"expected one float, or one for each of {rows:,} rows, found "
            f"{scale.dtype} {list(scale.shape)}"
            + (" (scales per block are not read)" if len(scale.shape) > 1 else "")
        )
    values = scale.read().astype(np.float32)
    if not (np.isfinite(values) & (values > 0)).all():
        return "expected positive, finite scales, found others"
    return None


def _note_problem(weight: TensorInfo, note: TensorInfo) -> str | None:
    """Why what ComfyUI notes of a weight is not what the weight is, or None."""
    if note.dtype != np.uint8 or note.nbytes > _LARGEST_NOTE:
        return f"expected JSON as bytes, found {note.dtype} {list(note.shape)}"
    try:
        kind = json.loads(note.read().tobytes())["format"]
    except (ValueError, KeyError, TypeError):
        return "expected JSON with a format, found other bytes"
    wanted = weight.dtype.name
    if kind != wanted:
        return f"expected the format {wanted!r} of its weight, found {brief(kind)}"
    return None


__all__ = ["ScaledInfo", "read_scaled"]
