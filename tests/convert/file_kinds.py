"""One small file of every kind that people have, made without our readers' code.

Writers: the `safetensors` and `gguf` packages, and NumPy with `pickle` and `zipfile`
for what `torch.save` writes. The network is a Wan of two blocks.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.convert import file_kinds_hunyuan
from tests.convert.hunyuan_files import in_comfy
from tests.convert.lora_files import NAMINGS, low_rank, original
from tests.convert.packed_files import pack_checkpoint
from tests.convert.test_gguf_file import write as write_gguf
from tests.convert.torch_files import whole, write_torch_file
from tests.golden import wan_cases, wan_root_cases
from tests.golden.wan_root_cases import CLIP_FILE, T5_FILE, VAE_FILES

CASE = wan_cases.load("t2v_128_f2_8x6_t7_rows")
WEIGHTS = CASE.weights()
ORIGINAL = {original(key): value for key, value in WEIGHTS.items()}
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
Weights = dict[str, np.ndarray]


class Kind(NamedTuple):
    """A row of the table.

    Attributes:
      write: (folder) -> what `convert` is given, and the weights that it must find by
        diffusers' keys; those are None where the file is refused.
      refused: what the message calls the file; "" where it is read.
    """

    write: Callable[[Path], tuple[Any, Weights | None]]
    refused: str = ""


def diffusers(folder: Path, weights: Weights) -> Path:
    """A directory as `save_pretrained` makes it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CASE.config))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


def single(folder: Path, tensors: dict[str, np.ndarray], name: str = "wan") -> Path:
    """One safetensors file without a config.json."""
    file = folder / f"{name}.safetensors"
    save_file(tensors, file)
    return file


def _plain(dtype: Any) -> Kind:
    def write(folder: Path) -> tuple[Any, Weights]:
        cast = {key: value.astype(dtype) for key, value in WEIGHTS.items()}
        return diffusers(folder / "m", cast), cast

    return Kind(write)


def _sharded(folder: Path) -> tuple[Any, Weights]:
    folder = folder / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CASE.config))
    places = {}
    for number in (0, 1):
        name = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        part = {key: WEIGHTS[key] for key in sorted(WEIGHTS)[number::2]}
        save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": places}
    file = folder / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps(index))
    return folder, WEIGHTS


def _prefixed(*prefixes: str) -> Kind:
    def write(folder: Path) -> tuple[Any, Weights]:
        prefix = "".join(prefixes)
        return single(folder, {prefix + k: v for k, v in ORIGINAL.items()}), WEIGHTS

    return Kind(write)


def _all_in_one(folder: Path) -> tuple[Any, Weights]:
    tensors = {f"model.diffusion_model.{k}": v for k, v in ORIGINAL.items()}
    tensors["vae.decoder.conv1.weight"] = np.ones(4, np.float32)
    tensors["first_stage_model.encoder.conv1.weight"] = np.ones(4, np.float32)
    tensors["text_encoders.umt5xxl.transformer.shared.weight"] = np.ones(
        (4, 4), np.float32
    )
    return single(folder, tensors), WEIGHTS


def _torch(*path: str, **beside: dict[str, np.ndarray]) -> Kind:
    def write(folder: Path) -> tuple[Any, Weights]:
        return _torch_file(folder / "wan.pth", path, beside), WEIGHTS

    return Kind(write)


def _torch_file(
    file: Path, path: tuple[str, ...], beside: dict[str, dict[str, np.ndarray]]
) -> Path:
    count = iter(range(10_000))

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {name: whole(array, str(next(count))) for name, array in arrays.items()}

    content: Any = tensors(ORIGINAL)
    for name in reversed(path):
        content = {name: content}
    for name, arrays in beside.items():
        content[name] = tensors(arrays)
    return write_torch_file(file, content)


def _one_of_two(folder: Path) -> tuple[Any, Weights]:
    raw = {key: value * 2 for key, value in ORIGINAL.items()}
    file = _torch_file(folder / "wan.pth", ("generator_ema",), {"generator": raw})
    return {"source": file, "state_dict": "generator_ema"}, WEIGHTS


def _two(folder: Path) -> tuple[Any, None]:
    raw = {key: value * 2 for key, value in ORIGINAL.items()}
    return _torch_file(folder / "wan.pth", ("ema",), {"model": raw}), None


def _authors(name: str, file: str) -> Kind:
    """A file that PyTorch wrote, see `make_wan_root.py`."""

    def write(folder: Path) -> tuple[Any, Weights]:
        shutil.copyfile(wan_root_cases.FOLDER / file, folder / file)
        return folder / file, _published(name)

    return Kind(write)


def _published(name: str) -> Weights:
    weights = wan_root_cases.weights_of(name, wan_root_cases.shapes()[name])
    # Wan reads what comes before CLIP's last layer; nothing else is stored.
    unused = ("post_layernorm", "encoder.layers.1.")
    # Norms of the autoencoder have axes of one.
    return {
        key: value.squeeze() if key.endswith("gamma") else value
        for key, value in weights.items()
        if not key.startswith(unused)
    }


def _t5_alone(folder: Path) -> tuple[Any, Weights]:
    return single(folder, _published("text_encoder"), "umt5"), _published(
        "text_encoder"
    )


def _float8(dtype: Any, scale: str, *, per_row: bool = False) -> Kind:
    def write(folder: Path) -> tuple[Any, Weights]:
        tensors, decoded = {}, {}
        for key, weight in WEIGHTS.items():
            name = original(key)
            if "blocks." not in key or weight.ndim != 2 or "weight" not in key:
                tensors[name] = decoded[key] = weight
                continue
            axis = 1 if per_row else None
            s = np.abs(weight).max(axis=axis, keepdims=per_row).astype(np.float32) / 400
            s = s if scale else np.float32(1)
            tensors[name] = (weight / s).astype(dtype)
            decoded[key] = tensors[name].astype(np.float32) * s
            if scale:
                place = name.removesuffix("weight") + scale
                tensors[place] = np.asarray(s, np.float32)
        if scale == "scale_weight":
            tensors["scaled_fp8"] = np.zeros(0, dtype)
        return single(folder, tensors), decoded

    return Kind(write)


def _gguf(kind: str) -> Kind:
    import gguf

    def write(folder: Path) -> tuple[Any, Weights]:
        kinds = {
            name: gguf.GGMLQuantizationType[kind]
            for name, array in ORIGINAL.items()
            if array.ndim == 2 and array.shape[1] % 32 == 0 and "weight" in name
        }
        found = write_gguf(folder / "wan.gguf", ORIGINAL, kinds=kinds)
        decoded = {k: found[original(k)].reshape(v.shape) for k, v in WEIGHTS.items()}
        return folder / "wan.gguf", decoded

    return Kind(write)


def _packed(dialect: str) -> Kind:
    def write(folder: Path) -> tuple[Any, Weights]:
        tensors, decoded = pack_checkpoint(ORIGINAL, dialect, keep=("embedding",))
        found = {key: decoded.get(original(key), WEIGHTS[key]) for key in WEIGHTS}
        return {"source": single(folder, tensors), "dialect": dialect}, found

    return Kind(write)


def _lora(naming: str) -> Kind:
    def write(folder: Path) -> tuple[Any, Weights]:
        keys = ["blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"]
        tensors, gains = low_rank(WEIGHTS, keys, naming)
        file = single(folder, tensors, "lora")
        found = {key: value + gains.get(key, 0) for key, value in WEIGHTS.items()}
        return {"source": diffusers(folder / "m", WEIGHTS), "lora": [file]}, found

    return Kind(write)


def _with(named: str, message: str, shape: Any = (2,), dtype: Any = np.float32) -> Kind:
    """Refused for a tensor that the file has besides."""

    def write(folder: Path) -> tuple[Any, None]:
        array = np.zeros(shape, dtype)
        return single(folder, ORIGINAL | {named: array}), None

    return Kind(write, message)


def _adapter(suffix: str, message: str) -> Kind:
    def write(folder: Path) -> tuple[Any, None]:
        name = f"transformer.blocks.0.attn1.to_q.{suffix}"
        file = single(folder, {name: np.ones((4, 4), np.float32)}, "lora")
        return {"source": diffusers(folder / "m", WEIGHTS), "lora": [file]}, None

    return Kind(write, message)


def _bytes(begin: bytes, message: str, name: str = "wan.safetensors") -> Kind:
    def write(folder: Path) -> tuple[Any, None]:
        (folder / name).write_bytes(begin)
        return folder / name, None

    return Kind(write, message)


def _keys(message: str, *names: str) -> Kind:
    def write(folder: Path) -> tuple[Any, None]:
        return single(folder, {n: np.ones((4, 4), np.float32) for n in names}), None

    return Kind(write, message)


def _gguf_of(architecture: str, kind: str, message: str) -> Kind:
    import gguf

    def write(folder: Path) -> tuple[Any, None]:
        writer = gguf.GGUFWriter(folder / "wan.gguf", architecture)
        kinds = gguf.GGMLQuantizationType
        blocks, nbytes = gguf.GGML_QUANT_SIZES[kinds[kind]]
        data = np.zeros((2, nbytes), np.uint8) if blocks > 1 else np.ones(2, np.float32)
        writer.add_tensor("x", data, raw_dtype=kinds[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder / "wan.gguf", None

    return Kind(write, message)


def _renamed_gguf(folder: Path) -> tuple[Any, None]:
    file, _ = _gguf("Q8_0").write(folder)
    return file.rename(folder / "wan.safetensors"), None


def _with_block_scales() -> Kind:
    def write(folder: Path) -> tuple[Any, None]:
        name = "blocks.0.ffn.0."
        note = json.dumps({"format": "float8_e4m3fn_blockwise"}).encode()
        changed = {
            f"{name}weight": ORIGINAL[f"{name}weight"].astype(E4M3),
            f"{name}weight_scale": np.ones((3, 2), np.float32),
            f"{name}comfy_quant": np.frombuffer(note, np.uint8),
        }
        return single(folder, ORIGINAL | changed), None

    return Kind(write, "scales per block")


def _mxfp8(folder: Path) -> tuple[Any, None]:
    """By hand: NumPy has no E8M0 that the safetensors package writes."""
    header = json.dumps(
        {
            "blocks.0.ffn.0.weight": {
                "dtype": "F8_E4M3",
                "shape": [1, 32],
                "data_offsets": [0, 32],
            },
            "blocks.0.ffn.0.weight_scale": {
                "dtype": "F8_E8M0",
                "shape": [1, 1],
                "data_offsets": [32, 33],
            },
        }
    ).encode()
    file = folder / "wan.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(33))
    return file, None


_Q = "blocks.0.self_attn.q."
KINDS: dict[str, Kind] = {
    "diffusers directory, float32": _plain(np.float32),
    "diffusers directory, float16": _plain(np.float16),
    "diffusers directory, bfloat16": _plain(ml_dtypes.bfloat16),
    "diffusers directory in shards": Kind(_sharded),
    "Wan, original names": _prefixed(),
    "Wan, original names, ComfyUI prefix": _prefixed("model.diffusion_model."),
    "Wan, original names, DiffSynth prefix": _prefixed("pipe.dit."),
    "Wan, original names, compiled and sharded": _prefixed(
        "module.", "_orig_mod.", "_fsdp_wrapped_module."
    ),
    "all-in-one file": Kind(_all_in_one),
    "torch.save": _torch(),
    "torch.save of a training program": _torch("state_dict"),
    "torch.save, two levels down": _torch("checkpoint", "model"),
    "torch.save with several state dicts and --state-dict": Kind(_one_of_two),
    "Wan's autoencoder, original names": _authors("vae_2.1", VAE_FILES["2.1"]),
    "UMT5, original names": _authors("text_encoder", T5_FILE),
    "UMT5 or T5, transformers' names": Kind(_t5_alone),
    "CLIP, original names": _authors("image_encoder", CLIP_FILE),
    "HunyuanVideo, original names": Kind(file_kinds_hunyuan.plain),
    "HunyuanVideo GGUF": Kind(file_kinds_hunyuan.gguf),
    "LoRA for HunyuanVideo, original names": Kind(file_kinds_hunyuan.lora),
    "float8 e4m3, no scales": _float8(E4M3, ""),
    "scaled float8 e4m3, scale_weight": _float8(E4M3, "scale_weight"),
    "scaled float8 e5m2, scale_weight": _float8(ml_dtypes.float8_e5m2, "scale_weight"),
    "scaled float8 e4m3, weight_scale per channel": _float8(
        E4M3, "weight_scale", per_row=True
    ),
    **{
        f"GGUF {kind}": _gguf(kind)
        for kind in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    },
    **{f"NVFP4, {name}": _packed(name) for name in ("modelopt", "comfyui", "lightx2v")},
    **{f"LoRA, {naming}": _lora(naming) for naming in NAMINGS},
    "torch.save with several state dicts": Kind(_two, "expected one state dict"),
    "DoRA": _adapter("lora_magnitude_vector", "DoRA"),
    "LoHa": _adapter("hada_w1_a", "LoHa"),
    "LoKr": _adapter("lokr_w1", "LoKr"),
    "a LoRA as the network": _keys(
        "a LoRA",
        "transformer.blocks.0.attn1.to_q.lora_A.weight",
        "transformer.blocks.0.attn1.to_q.lora_B.weight",
    ),
    "bitsandbytes nf4": _with(_Q + "weight.absmax", "bitsandbytes (nf4, fp4 or int8)"),
    "bitsandbytes int8": _with(_Q + "SCB", "bitsandbytes (nf4, fp4 or int8)"),
    "int8 weights of others": _with(
        "blocks.9.self_attn.q.weight", "int8", (2, 2), np.int8
    ),
    "MXFP8": Kind(_mxfp8, "MXFP8"),
    "SVDQuant": _with(_Q + "wscales", "SVDQuant (Nunchaku)"),
    "GPTQ or AWQ": _with(_Q + "qzeros", "GPTQ or AWQ"),
    "quanto": _with(_Q + "weight._data", "quanto"),
    "float8 with scales per block": _with(
        _Q + "weight_scale_inv", "float8 with scales per block"
    ),
    "Wan VACE": _with("vace_blocks.0.before_proj.weight", "Wan VACE"),
    "Wan Animate": _with("face_adapter.fuser_blocks.0.q.weight", "Wan Animate"),
    "Wan S2V": _with("casual_audio_encoder.weights", "Wan S2V"),
    "SkyReels": _with("fps_embedding.weight", "SkyReels"),
    "Wan Fun (control)": _with("control_adapter.conv.weight", "Wan Fun (control)"),
    "GGUF of a type that is not read": _gguf_of("wan", "IQ2_XXS", "IQ2_XXS"),
    "GGUF of another network": _gguf_of("llama", "F32", "'llama'"),
    "a container under another's name": Kind(_renamed_gguf, "a GGUF file; name it"),
    "float8 with scales per block, comfy_quant": _with_block_scales(),
    "Git LFS pointer": _bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "Git LFS pointer",
    ),
    "web page": _bytes(b"<!DOCTYPE html><html></html>", "a web page"),
    "torch.save before torch 1.6": _bytes(
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before torch 1.6", "wan.pth"
    ),
    "HunyuanVideo, ComfyUI's names": Kind(
        partial(file_kinds_hunyuan.plain, spelled=in_comfy)
    ),
    "Flux and others of its names": _keys(
        "original layout of HunyuanVideo", "double_blocks.0.img_attn_qkv.weight"
    ),
    "CogVideoX, original names (SAT)": _keys(
        "original layout of CogVideoX", "mixins.patch_embed.proj.weight"
    ),
}
