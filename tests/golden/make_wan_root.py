"""Makes `wan_root/`: tiny files as Wan's authors publish them, by `torch.save`.

Run from the repository root: `python -m tests.golden.make_wan_root`. The names of the
autoencoders are held against diffusers' own conversion; the text encoder and CLIP under
the authors' names are computed here and held against transformers.
"""

import json
import math
import re

import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from tests.golden.wan_root_cases import (
    CLIP,
    CLIP_FILE,
    ENCODER,
    FOLDER,
    T5_FILE,
    VAE_FILES,
    VAES,
    transformer,
    weights_of,
)

Weights = dict[str, torch.Tensor]
_BLOCK = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3"}
_BLOCK |= {"conv2": "residual.6", "conv_shortcut": "shortcut"}
_ENDS = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "encoder.conv_in": "encoder.conv1",
    "decoder.conv_in": "decoder.conv1",
    "encoder.norm_out": "encoder.head.0",
    "decoder.norm_out": "decoder.head.0",
    "encoder.conv_out": "encoder.head.2",
    "decoder.conv_out": "decoder.head.2",
}
_MIDDLE = r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.*)"


def vae_name(key: str, version: str, blocks: int) -> str:
    """The authors' name of a key of diffusers' autoencoder."""
    stem, _, leaf = key.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{leaf}"
    if match := re.fullmatch(_MIDDLE, key):
        half, kind, index, inner = match.groups()
        if kind == "attentions":
            return f"{half}.middle.1.{inner}"
        name, _, rest = inner.partition(".")
        return f"{half}.middle.{2 * int(index)}.{_BLOCK[name]}.{rest}"
    half = key.partition(".")[0]
    way = "down" if half == "encoder" else "up"
    row = f"{half}.{way}samples."
    if version == "2.1" and half == "encoder":
        index, inner = re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(.*)", key).groups()
        name, _, rest = inner.partition(".")
        return row + (f"{index}.{_BLOCK.get(name, name)}.{rest}")
    level, kind, inner = re.fullmatch(
        rf"{half}\.{way}_blocks\.(\d+)\.(\w+)\.(.*)", key
    ).groups()
    index, last = inner.partition(".")[0], blocks + (half == "decoder")
    if kind == "resnets":
        name, _, rest = inner.partition(".")[2].partition(".")
        inner = f"{_BLOCK[name]}.{rest}"
    else:
        inner = inner.partition(".")[2] if kind.endswith("s") else inner
        index = str(last)
    if version == "2.2":
        return f"{row}{level}.{way}samples.{index}.{inner}"
    return f"{row}{int(level) * (last + 1) + int(index)}.{inner}"


def save_vae(version: str) -> dict[str, list[int]]:
    """Writes the file of an autoencoder; shapes by diffusers' keys."""
    config = {k: v for k, v in VAES[version].items() if not k.startswith("_")}
    state = AutoencoderKLWan(**config).state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    weights = _weights(f"vae_{version}", shapes)
    blocks = VAES[version]["num_res_blocks"]
    named = {vae_name(key, version, blocks): value for key, value in weights.items()}
    assert len(named) == len(weights)
    if version == "2.1":
        back = convert_wan_vae_to_diffusers(dict(named))
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[key], weights[key]) for key in weights)
    torch.save(named, FOLDER / VAE_FILES[version])
    return shapes


def _weights(name: str, shapes: dict[str, list[int]]) -> Weights:
    made = weights_of(name, {key: tuple(shape) for key, shape in shapes.items()})
    return {key: torch.from_numpy(v).bfloat16() for key, v in made.items()}


_T5 = {
    "shared.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


def t5_name(key: str) -> str:
    """The authors' name of a key of transformers' UMT5."""
    if key in _T5:
        return _T5[key]
    key = key.replace("encoder.block.", "blocks.")
    part = next(part for part in _T5 if f".{part}." in key)
    return key.replace(part, _T5[part])


def run_t5(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The encoder under the authors' names, without a mask."""
    heads, layers = ENCODER["num_heads"], ENCODER["num_layers"]
    eps = ENCODER["layer_norm_epsilon"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weights[name]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x, approximate="tanh")

    distance = torch.arange(len(ids))[None, :] - torch.arange(len(ids))[:, None]
    far = 8 + (torch.log(distance.abs() / 8) / math.log(128 / 8) * 8)
    near = distance.abs() < 8
    bucket = torch.where(
        near, distance.abs(), far.nan_to_num(0, 0, 0).long().clip(0, 15)
    )
    bucket = bucket + 16 * (distance > 0)
    x = weights["token_embedding.weight"][ids]
    for layer in range(layers):
        block = f"blocks.{layer}."
        h = norm(x, block + "norm1.weight")
        q, k, v = (
            (h @ weights[f"{block}attn.{name}.weight"].T)
            .reshape(len(ids), heads, -1)
            .transpose(0, 1)
            for name in "qkv"
        )
        table = weights[block + "pos_embedding.embedding.weight"]
        scores = q @ k.transpose(1, 2) + table[bucket].permute(2, 0, 1)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ weights[block + "attn.o.weight"].T
        h = norm(x, block + "norm2.weight")
        gate = gelu(h @ weights[block + "ffn.gate.0.weight"].T)
        h = gate * (h @ weights[block + "ffn.fc1.weight"].T)
        x = x + h @ weights[block + "ffn.fc2.weight"].T
    return norm(x, "norm.weight")


def save_t5() -> dict[str, list[int]]:
    """Writes the file of the text encoder; shapes by transformers' keys."""
    values = {k: v for k, v in ENCODER.items() if k != "architectures"}
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**values)).eval()
    shapes = {
        key: list(value.shape)
        for key, value in model.state_dict().items()
        if key != "encoder.embed_tokens.weight"
    }
    weights = _weights("text_encoder", shapes)
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    named = {t5_name(key): value for key, value in weights.items()}
    ids = torch.arange(3, 43) * 7
    with torch.no_grad():
        wanted = model(ids[None]).last_hidden_state[0]
    found = run_t5({key: value.float() for key, value in named.items()}, ids)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.save(named, FOLDER / T5_FILE)
    return shapes


_CLIP = {
    "embeddings.class_embedding": "cls_embedding",
    "embeddings.patch_embedding": "patch_embedding",
    "embeddings.position_embedding.weight": "pos_embedding",
    "pre_layrnorm": "pre_norm",
    "post_layernorm": "post_norm",
    "encoder.layers": "transformer",
    "layer_norm": "norm",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


def clip_weights(weights: Weights) -> Weights:
    """A picture encoder under the authors' names, with some of what lies beside it."""
    named: Weights = {}
    for key, value in weights.items():
        name = key.removeprefix("vision_model.")
        for theirs, ours in _CLIP.items():
            name = name.replace(theirs, ours)
        if name in ("cls_embedding", "pos_embedding"):
            value = value.reshape(1, -1, value.shape[-1])
        named[f"visual.{name}"] = value
    for layer in range(CLIP["num_hidden_layers"]):
        for leaf in ("weight", "bias"):
            start = f"visual.transformer.{layer}."
            parts = [named.pop(f"{start}self_attn.{x}_proj.{leaf}") for x in "qkv"]
            named[f"{start}attn.to_qkv.{leaf}"] = torch.cat(parts)
    head = torch.ones(CLIP["hidden_size"], 8).bfloat16()
    textual = {"textual.token_embedding.weight": head, "log_scale": head[0, 0].clone()}
    return named | {"visual.head": head} | textual


def run_clip(weights: Weights, pixels: torch.Tensor) -> torch.Tensor:
    """The last layer's output under the authors' names."""
    heads, functional = CLIP["num_attention_heads"], torch.nn.functional

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        w, b = (weights[f"visual.{name}.{leaf}"] for leaf in ("weight", "bias"))
        return functional.layer_norm(x, w.shape, w, b, CLIP["layer_norm_eps"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        w, b = (weights[f"visual.{name}.{leaf}"] for leaf in ("weight", "bias"))
        return functional.linear(x, w, b)

    kernel = weights["visual.patch_embedding.weight"]
    x = functional.conv2d(pixels, kernel, stride=CLIP["patch_size"])
    x = torch.cat([weights["visual.cls_embedding"], x.flatten(2).transpose(1, 2)], 1)
    x = norm(x + weights["visual.pos_embedding"], "pre_norm")
    for layer in range(CLIP["num_hidden_layers"]):
        start = f"transformer.{layer}."
        qkv = linear(norm(x, start + "norm1"), start + "attn.to_qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + linear(mixed.transpose(1, 2).flatten(2), start + "attn.proj")
        hidden = linear(norm(x, start + "norm2"), start + "mlp.0")
        x = x + linear(functional.gelu(hidden), start + "mlp.2")
    return x


def save_clip() -> dict[str, list[int]]:
    """Writes the file of the picture encoder; shapes by transformers' keys."""
    values = {k: v for k, v in CLIP.items() if k != "architectures"}
    config = transformers.CLIPVisionConfig(**values, projection_dim=8)
    model = transformers.CLIPVisionModel(config).eval()
    shapes = {
        key: list(value.shape)
        for key, value in model.state_dict().items()
        if value.is_floating_point()
    }
    weights = _weights("image_encoder", shapes)
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    named = clip_weights(weights)
    pixels = torch.linspace(-1, 1, 3 * CLIP["image_size"] ** 2)
    pixels = pixels.reshape(1, 3, CLIP["image_size"], -1).sin()
    with torch.no_grad():
        wanted = model(pixels, output_hidden_states=True).hidden_states[-1]
        found = run_clip({k: v.float() for k, v in named.items()}, pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.save(named, FOLDER / CLIP_FILE)
    return shapes


def main() -> None:
    """Writes all files, and the shapes of their weights."""
    FOLDER.mkdir(exist_ok=True)
    shapes = {f"vae_{version}": save_vae(version) for version in VAES}
    shapes |= {"text_encoder": save_t5(), "image_encoder": save_clip()}
    (FOLDER / "shapes.json").write_text(json.dumps(shapes) + "\n")
    networks = {}
    for version, kind in (("2.1", "text"), ("2.1", "image"), ("2.2", "text")):
        config = transformer(version, image=kind == "image")
        values = {k: v for k, v in config.items() if not k.startswith("_")}
        state = WanTransformer3DModel(**values).state_dict()
        found = {key: list(value.shape) for key, value in state.items()}
        networks[f"{version} {kind}"] = found
    (FOLDER / "network_shapes.json").write_text(json.dumps(networks) + "\n")


if __name__ == "__main__":
    main()
