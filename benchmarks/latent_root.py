"""`python -m benchmarks.latent_root`: the trained small pipeline as a diffusers root.

Every component under the names that diffusers and transformers give it, bfloat16, by
the converter's own rule tables read backwards; checksums of all files.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from convert.tables import table_for
from sixbit_jax import checksums, files
from sixbit_jax.demo.latent import loop, parts, tokens, vae
from sixbit_jax.demo.latent.train import scale_of
from sixbit_jax.demo.model import DIFFUSERS_VERSION, parameter_name

_TRANSFORMERS_VERSION = "5.3.0"


def source_tensors(model_class: Any, state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters under the keys of the published files, bfloat16.

    Args:
      model_class: of the network; says which parameters are stacked.
      state: its parameters.

    Yields:
      Key and array.

    Raises:
      ValueError: parameters that are not finite; lists all of them.
    """
    table = table_for({"_class_name": model_class.class_name})
    broken = []
    for path, variable in nnx.to_flat_state(state):
        name = parameter_name(path)
        array = np.asarray(variable.get_value(), np.float32)
        if not np.isfinite(array).all():
            broken.append(name)
        stack = next((s for s in table.stacks if name.startswith(f"{s}.")), None)
        layers = {name: array}
        if stack is not None:
            rest = name.removeprefix(f"{stack}.")
            layers = {f"{stack}.{i}.{rest}": part for i, part in enumerate(array)}
        for one, values in layers.items():
            key, rule = table.source_of(one)
            values = np.asarray(rule.transform.backward(values))
            yield key, np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
    if broken:
        raise ValueError(f"parameters with NaN or infinity: {', '.join(broken)}")


def _write_weights(
    folder: Path, stem: str, tensors: dict[str, np.ndarray], *, shards: int = 1
) -> None:
    """Safetensors with an index if there are several shards, of nearly equal size."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    groups: list[dict[str, np.ndarray]] = [{} for _ in range(shards)]
    written = 0
    for name in sorted(tensors):
        groups[min(written * shards // total, shards - 1)][name] = tensors[name]
        written += tensors[name].nbytes
    where = {}
    for number, group in enumerate(groups, start=1):
        file = f"{stem}.safetensors"
        if shards > 1:
            file = f"{stem}-{number:05d}-of-{shards:05d}.safetensors"
        # diffusers refuses files that do not name their framework.
        save_file(group, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        where |= dict.fromkeys(group, file)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _text_config() -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        **parts.T5.to_dict(),
        "transformers_version": _TRANSFORMERS_VERSION,
    }


def write_root(destination: Path, autoencoder: Path, weights: Path) -> None:
    """Writes the root; it appears when it is complete.

    Args:
      destination: directory to make.
      autoencoder: folder that `train_vae` wrote.
      weights: folder that `train` wrote.

    Raises:
      ValueError: the destination exists, or weights do not fit.
    """
    vae_model = vae.new()
    vae_state = loop.load_weights(autoencoder, nnx.state(vae_model))
    scale = scale_of(autoencoder)
    _, like = parts.new_params()
    trained = loop.load_weights(weights, like)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with files.new_directory(destination) as root:
        names = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")
        for name in names:
            (root / name).mkdir()
        network = parts.TRANSFORMER.model_class
        tensors = dict(source_tensors(network, trained["transformer"]))
        stem = "diffusion_pytorch_model"
        _write_weights(root / "transformer", stem, tensors, shards=2)
        _write_json(root / "transformer" / "config.json", parts.transformer_config())
        encoder = type(parts.new_text_encoder())
        tensors = dict(source_tensors(encoder, trained["text"]))
        _write_weights(root / "text_encoder", "model", tensors)
        _write_json(root / "text_encoder" / "config.json", _text_config())
        tensors = dict(source_tensors(type(vae_model), vae_state))
        _write_weights(root / "vae", stem, tensors)
        config = vae.CONFIG.to_dict() | {"scaling_factor": scale}
        first = {
            "_class_name": type(vae_model).class_name,
            "_diffusers_version": DIFFUSERS_VERSION,
        }
        _write_json(root / "vae" / "config.json", first | config)
        tokens.write(root / "tokenizer")
        _write_json(
            root / "scheduler" / "scheduler_config.json", parts.scheduler_config()
        )
        _write_json(
            root / "model_index.json",
            {
                "_class_name": parts.TRANSFORMER.pipeline,
                "_diffusers_version": DIFFUSERS_VERSION,
                "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
                "text_encoder": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "T5Tokenizer"],
                "transformer": ["diffusers", network.class_name],
                "vae": ["diffusers", type(vae_model).class_name],
            },
        )
        checksums.write_manifest(root, checksums.DIFFUSERS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the root; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latent_root")
    parser.add_argument("--vae", type=Path, required=True, help="of train_vae")
    parser.add_argument("--weights", type=Path, required=True, help="of train")
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    options = parser.parse_args(arguments)
    write_root(options.out, options.vae, options.weights)


if __name__ == "__main__":
    main()
