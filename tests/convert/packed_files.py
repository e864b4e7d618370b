"""Packed NVFP4 in six layouts, written with NumPy and loops, apart from the reader."""

import json

import ml_dtypes
import numpy as np

_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Codes 0..15 [N, K], E4M3 scales [N, K/16] and amax / 2688, as ModelOpt does."""
    rows, columns = weight.shape
    scale = np.float32(np.abs(weight).max() / 2688)
    blocks = weight.reshape(rows, columns // 16, 16)
    amax = np.abs(blocks).max(-1)
    scales = np.clip(amax / (6 * scale), 2.0**-9, 448)
    scales = np.where(amax == 0, 1.0, scales).astype(_E4M3)
    steps = scales.astype(np.float32) * scale
    scaled = np.clip(blocks / steps[..., None], -6, 6)
    codes = scaled.astype(_E2M1).view(np.uint8).reshape(rows, columns)
    return codes & 15, scales, scale


def decode(codes: np.ndarray, scales: np.ndarray, scale: np.float32) -> np.ndarray:
    """float32 [N, K]."""
    values = codes.astype(np.uint8).view(_E2M1).astype(np.float32)
    steps = np.repeat(scales.astype(np.float32) * scale, 16, axis=1)
    return values * steps


def pack_bytes(codes: np.ndarray, *, high_first: bool) -> np.ndarray:
    """Two codes per byte."""
    even, odd = codes[:, 0::2], codes[:, 1::2]
    return even << 4 | odd if high_first else odd << 4 | even


def tile(scales: np.ndarray) -> np.ndarray:
    """128x4 tiles, one scale after the other."""
    rows, columns = scales.shape
    high, wide = -(-rows // 128) * 128, -(-columns // 4) * 4
    tiled = np.zeros(high * wide, np.uint8)
    raw = scales.view(np.uint8)
    for row in range(rows):
        for column in range(columns):
            number = row // 128 * (wide // 4) + column // 4
            inside = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
            tiled[number * 512 + inside] = raw[row, column]
    return tiled.reshape(high, wide)


def _comfy_mark() -> np.ndarray:
    return np.frombuffer(json.dumps({"format": "nvfp4"}).encode(), np.uint8)


def packed_weight(
    name: str, weight: np.ndarray, dialect: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a packed linear `name`, and the weights that they stand for."""
    codes, scales, scale = quantize(weight.astype(np.float32))
    high_first = dialect in ("comfyui", "bfl")
    tiled = dialect in ("comfyui", "lightx2v", "modelopt-swizzled")
    codes_name = "weight_packed" if dialect == "compressed-tensors" else "weight"
    tensors = {
        f"{name}.{codes_name}": pack_bytes(codes, high_first=high_first),
        f"{name}.weight_scale": tile(scales).view(_E4M3) if tiled else scales,
    }
    if dialect in ("lightx2v", "compressed-tensors"):
        tensors[f"{name}.weight_global_scale"] = np.array([1 / scale], np.float32)
        tensors[f"{name}.input_global_scale"] = np.array([100.0], np.float32)
        scale = np.float32(1) / tensors[f"{name}.weight_global_scale"][0]
    else:
        tensors[f"{name}.weight_scale_2"] = np.array(scale, np.float32)
    if dialect.startswith("modelopt"):
        tensors[f"{name}.input_scale"] = np.array(0.01, np.float32)
    if dialect == "comfyui":
        tensors[f"{name}.comfy_quant"] = _comfy_mark()
    return tensors, decode(codes, scales, scale)


def pack_checkpoint(
    weights: dict[str, np.ndarray], dialect: str, *, keep: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Packs all linears of the blocks.

    Args:
      weights: a state dict.
      dialect: name of the layout.
      keep: parts of names that stay as they are.

    Returns:
      The tensors of the file, and the weights that the packed ones stand for.
    """
    tensors, decoded = {}, {}
    for key, weight in weights.items():
        linear = "blocks." in key and key.endswith(".weight") and weight.ndim == 2
        if not linear or any(part in key for part in keep):
            tensors[key] = weight
            continue
        made, decoded[key] = packed_weight(key.removesuffix(".weight"), weight, dialect)
        tensors |= made
    return tensors, decoded
