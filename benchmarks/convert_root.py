"""Time and peak memory of `sixbit convert` for a whole diffusers root of real size.

    python -m benchmarks.convert_root --pipeline cogvideox-5b --scratch DIR --out FILE
    python -m benchmarks.convert_root --pipeline wan2.1-1.3b --only text_encoder ...

Makes the root with random weights in bf16, one tensor at a time, as it is published
(text encoder T5-XXL or UMT5-XXL in two shards or more, transformer, VAE, tokenizer,
scheduler), converts it in a process of its own, reads that process's peak resident
memory from the operating system, and removes everything again. CogVideoX-5b needs 31 GB
of room under DIR. The load of the machine stands in the record: seconds on a busy one
are no measure of the converter.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.convert import MODELS, measure, source_shapes, write_shards
from convert.tables import table_for
from sixbit_jax.benchmark import records
from sixbit_jax.checkpoint import summarize
from sixbit_jax.text_encoders.t5_config import T5Config
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.wan_config import WanVAEConfig

_BF16 = np.dtype(ml_dtypes.bfloat16)
PACKAGES = (*records.PACKAGES, "safetensors")


class Part(NamedTuple):
    """A component to imitate.

    Attributes:
      library: in `model_index.json`.
      config: its config.json, with the name of its class.
      shards: number of files.
      stem: how their names begin.
    """

    library: str
    config: dict[str, Any]
    shards: int
    stem: str = "diffusion_pytorch_model"

    @property
    def class_name(self) -> str:
        """As the index has it."""
        named = self.config.get("_class_name")
        return named or self.config["architectures"][0]


class Root(NamedTuple):
    """A pipeline to imitate.

    Attributes:
      class_name: of the pipeline.
      parts: components with weights, by folder.
      tokenizer: name of the golden tokenizer that stands in its place.
      scheduler: its configuration.
    """

    class_name: str
    parts: dict[str, Part]
    tokenizer: str
    scheduler: dict[str, Any]


def _encoder(name: str, words: int) -> Part:
    config = {"architectures": [name], "feed_forward_proj": "gated-gelu"}
    return Part(
        "transformers", config | T5Config(vocab_size=words).to_dict(), 4, "model"
    )


def _vae(name: str, config: Any) -> Part:
    return Part("diffusers", {"_class_name": name} | config.to_dict(), 1)


ROOTS: dict[str, Callable[[], Root]] = {
    "cogvideox-5b": lambda: Root(
        "CogVideoXPipeline",
        {
            "transformer": Part("diffusers", MODELS["cogvideox-5b"].config, 2),
            "text_encoder": _encoder("T5EncoderModel", 32128),
            "vae": _vae("AutoencoderKLCogVideoX", CogVideoXVAEConfig()),
        },
        "t5",
        {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 1.0},
    ),
    "wan2.1-1.3b": lambda: Root(
        "WanPipeline",
        {
            "transformer": Part(
                "diffusers",
                {
                    "_class_name": "WanTransformer3DModel",
                    "num_attention_heads": 12,
                    "ffn_dim": 8960,
                    "num_layers": 30,
                },
                2,
            ),
            "text_encoder": _encoder("UMT5EncoderModel", 256384),
            "vae": _vae("AutoencoderKLWan", WanVAEConfig()),
        },
        "umt5",
        {
            "_class_name": "UniPCMultistepScheduler",
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 3.0,
        },
    ),
}


def make_root(
    path: Path, root: Root, *, only: list[str], layers: int | None = None
) -> int:
    """Writes a root.

    Args:
      path: to make.
      root: what it imitates.
      only: components with weights (empty: all).
      layers: of the text encoder, where it is cut.

    Returns:
      Bytes of its safetensors files.
    """
    from tests.golden.tokenizer_cases import unpack

    path.mkdir()
    index: dict[str, Any] = {"_class_name": root.class_name}
    total = 0
    for folder, part in root.parts.items():
        if only and folder not in only:
            continue
        index[folder] = [part.library, part.class_name]
        if folder == "text_encoder" and layers is not None:
            part = part._replace(config=part.config | {"num_layers": layers})
        keys = source_shapes(part.config, table_for(part.config))
        total += write_shards(
            path / folder, part.config, keys, _BF16, part.shards, stem=part.stem
        )
    unpack(root.tokenizer, path).rename(path / "tokenizer")
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    index["scheduler"] = ["diffusers", root.scheduler["_class_name"]]
    (path / "scheduler").mkdir()
    file = path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(root.scheduler))
    (path / "model_index.json").write_text(json.dumps(index))
    return total


def run(scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Makes a root, converts it; one flat record."""
    name, weights = args.pipeline, args.weights
    source, made = scratch / "root", scratch / "converted"
    source_bytes = make_root(source, ROOTS[name](), only=args.only, layers=args.layers)
    print(f"{name}: made {source_bytes:,} bytes", file=sys.stderr, flush=True)
    words = ["-m", "sixbit_jax.cli", "convert", str(source), str(made)]
    seconds, peak = measure([*words, "--weights", weights])
    parts = {p.name: summarize(p) for p in sorted(made.iterdir()) if _stored(p)}
    return {
        "model": name,
        "components": sorted(parts),
        "text_encoder_layers": args.layers or T5Config().num_layers,
        "weights": weights,
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak,
        "source_bytes": source_bytes,
        "written_bytes": sum(found.disk_bytes for found in parts.values()),
        "parameters": {n: found.num_parameters for n, found in parts.items()},
        "load_average": round(os.getloadavg()[1], 1),
    }


def _stored(path: Path) -> bool:
    return (path / "sixbit.json").is_file()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", choices=ROOTS, default="cogvideox-5b")
    parser.add_argument("--only", nargs="+", default=[], help="components (all)")
    parser.add_argument(
        "--layers",
        type=int,
        help="of the text encoder: cuts it (all; its embeddings "
        "are what needs most memory)",
    )
    parser.add_argument("--weights", default="nvfp4", help="of the transformer (nvfp4)")
    parser.add_argument("--scratch", type=Path, help="where to put the root")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument(
        "--append", action="store_true", help="to the records that the file has"
    )
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="convert-root-", dir=args.scratch))
    try:
        found = [run(scratch, args)]
    finally:
        shutil.rmtree(scratch)
    if args.append and args.out.is_file():
        found = records.read(args.out)["records"] + found
    words = ["python", "-m", "benchmarks.convert_root", "--pipeline", args.pipeline]
    words += ["--only", *args.only] if args.only else []
    words += ["--layers", str(args.layers)] if args.layers else []
    # The place of the scratch directory says nothing about the measurement.
    head = records.header(
        [*words, "--weights", args.weights, "--out", args.out.name],
        machine_name=records.processor(),
        packages=PACKAGES,
    )
    records.write(args.out, head, found)
    print(json.dumps(found[-1]), flush=True)


if __name__ == "__main__":
    main()
