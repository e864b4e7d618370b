"""Makes tests/golden/packed/: small networks packed by their real writers.

    python -m tests.golden.make_packed

Needs Python 3.11 with torch 2.13.0, diffusers 0.42.1, torchao 0.18.0, nvidia-modelopt
0.47.0 and compressed-tensors 0.20.1. Every case is a folder as the writer saved it,
and beside it `<case>.io.safetensors`: inputs, and the output `y` of diffusers in
float32 with the weights that the writer itself decodes; latents are [B, F, C, H, W].
"""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "packed"
NAME = "diffusion_pytorch_model.safetensors"
# Widths of which 128 rows and 4 blocks of 16 are no divisors, so that tiles are padded.
COGVIDEOX = {
    "num_attention_heads": 1,
    "attention_head_dim": 80,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 48,
    "text_embed_dim": 48,
    "num_layers": 2,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": 5,
    "use_rotary_positional_embeddings": True,
}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 144,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
# 128 divides every number of rows, and 64 every number of columns: no size tells tiles.
WHOLE = WAN | {
    "attention_head_dim": 64,
    "freq_dim": 128,
    "ffn_dim": 128,
    "text_dim": 64,
}
CLASSES = {
    "cogvideox": (diffusers.CogVideoXTransformer3DModel, COGVIDEOX),
    "wan": (diffusers.WanTransformer3DModel, WAN),
    "wan-whole": (diffusers.WanTransformer3DModel, WHOLE),
}


def network(family):
    """A network with random weights in which every parameter matters."""
    cls, config = CLASSES[family]
    torch.manual_seed(len(family))
    model = cls(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def inputs(family):
    """Latents, prompt embeddings and a timestep."""
    config = CLASSES[family][1]
    made = torch.Generator().manual_seed(1)
    shape = (1, 3, 4, 4, 6) if family == "cogvideox" else (1, 4, 3, 4, 6)
    width = config.get("text_embed_dim", config.get("text_dim"))
    return {
        "x": torch.randn(shape, generator=made),
        "e": torch.randn(1, 5, width, generator=made),
        "t": torch.tensor([500.0]),
    }


def run(model, family):
    """The network's output."""
    given = inputs(family)
    rotary = {}
    if family == "cogvideox":
        grid = diffusers.models.embeddings.get_3d_rotary_pos_embed(
            model.config.attention_head_dim,
            ((0, 0), (2, 3)),
            grid_size=(2, 3),
            temporal_size=3,
        )
        rotary["image_rotary_emb"] = grid
    with torch.no_grad():
        return model(
            hidden_states=given["x"],
            encoder_hidden_states=given["e"],
            timestep=given["t"],
            **rotary,
        ).sample


def finish(folder, family, decoded):
    """Writes what diffusers computes with decoded weights.

    Args:
      folder: as the writer saved it.
      family: key of CLASSES.
      decoded: weights by name where they are not those of `network`.
    """
    model = network(family)
    weights = model.state_dict()
    assert decoded
    assert decoded.keys() <= weights.keys()
    model.load_state_dict(weights | decoded)
    io = inputs(family) | {"y": run(model, family)}
    if family != "cogvideox":
        io |= {name: io[name].transpose(1, 2) for name in "xy"}
    target = FOLDER / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, target / file.name)
    save_file(
        {k: v.contiguous() for k, v in io.items()},
        FOLDER / f"{folder.name}.io.safetensors",
    )


def torchao(path, family, name, **options):
    """diffusers' TorchAoConfig, saved by save_pretrained."""
    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    network(family).save_pretrained(path / "plain")
    config = diffusers.TorchAoConfig(
        NVFP4WeightOnlyConfig(**options), modules_to_not_convert=["proj_out"]
    )
    model = type(network(family)).from_pretrained(
        path / "plain", quantization_config=config, torch_dtype=torch.float32
    )
    model.save_pretrained(path / name)
    stored = path / name / "config.json"
    # diffusers writes down the temporary folder that it read.
    values = json.loads(stored.read_text()) | {"_name_or_path": "plain"}
    stored.write_text(json.dumps(values, indent=2) + "\n")
    decoded = {
        key: value.dequantize(torch.float32)
        for key, value in model.state_dict().items()
        if isinstance(value, NVFP4Tensor)
    }
    finish(path / name, family, decoded)


def modelopt(path, family, name, **options):
    """ModelOpt's own export; `options` are of its rewriting for other programs."""
    from modelopt.torch.export import export_hf_checkpoint

    export_hf_checkpoint(calibrated(family), export_dir=path / name, **options)
    flat = path / f"{name}-flat"
    export_hf_checkpoint(calibrated(family), export_dir=flat)
    finish(path / name, family, decode_modelopt(flat / NAME, family))


def calibrated(family):
    """The network with ModelOpt's NVFP4 quantizers."""
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)
    config["quant_cfg"].append({"quantizer_name": "*proj_out*", "enable": False})
    return mtq.quantize(network(family), config, lambda model: run(model, family))


def decode_modelopt(file, family):
    """Weights by ModelOpt's own decoding of its flat export."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    tensors = load_file(file)
    shapes = {k: v.shape for k, v in network(family).state_dict().items()}
    decoded = {}
    for key, value in tensors.items():
        if key.endswith(".weight") and value.dtype == torch.uint8:
            packed = NVFP4QTensor(shapes[key], torch.float32, value)
            decoded[key] = packed.dequantize(
                torch.float32,
                scale=tensors[f"{key}_scale"],
                double_scale=tensors[f"{key}_scale_2"],
                block_sizes={-1: 16},
            )
    return decoded


def compressed_tensors(path, family, name):
    """compressed-tensors' compressor of nvfp4-pack-quantized, linear by linear."""
    from compressed_tensors.compressors import NVFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.quant_scheme import NVFP4A16
    from compressed_tensors.quantization.utils import (
        calculate_qparams,
        generate_gparam,
    )

    scheme = QuantizationScheme(targets=["Linear"], **NVFP4A16)
    model = network(family)
    model.save_pretrained(path / name)
    tensors, decoded = dict(model.state_dict()), {}
    for module_name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module_name == "proj_out":
            continue
        weight = tensors.pop(f"{module_name}.weight")
        blocks = weight.unflatten(1, (-1, 16))
        whole = generate_gparam(weight.min(), weight.max())
        scale, _ = calculate_qparams(
            blocks.amin(-1), blocks.amax(-1), scheme.weights, global_scale=whole
        )
        made = NVFP4PackedCompressor.compress(
            {"weight": weight, "weight_scale": scale, "weight_global_scale": whole},
            scheme,
        )
        tensors |= {f"{module_name}.{part}": value for part, value in made.items()}
        decoded[f"{module_name}.weight"] = dequantize(
            x_q=unpack_fp4_from_uint8(
                made["weight_packed"], *weight.shape, dtype=torch.float32
            ),
            scale=made["weight_scale"].to(torch.float32),
            args=scheme.weights,
            global_scale=whole,
            dtype=torch.float32,
        )
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / name / NAME)
    finish(path / name, family, decoded)


def main():
    """Makes all cases."""
    rewriting = {
        "enable_swizzle_layout": True,
        "enable_layerwise_quant_metadata": True,
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary)
        torchao(path, "wan", "torchao-wan", use_dynamic_per_tensor_scale=True)
        torchao(
            path,
            "cogvideox",
            "torchao-cogvideox-one-level",
            use_dynamic_per_tensor_scale=False,
        )
        modelopt(path, "cogvideox", "modelopt-cogvideox")
        modelopt(path, "cogvideox", "modelopt-cogvideox-swizzled", **rewriting)
        modelopt(
            path,
            "wan",
            "modelopt-wan-swizzled-padded",
            padding_strategy="row_col",
            **rewriting,
        )
        modelopt(path, "wan-whole", "modelopt-wan-whole-swizzled", **rewriting)
        compressed_tensors(path, "wan", "compressed-tensors-wan")


if __name__ == "__main__":
    main()
