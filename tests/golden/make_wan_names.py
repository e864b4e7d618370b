"""Makes `wan/original_names.json`: diffusers' names of the original keys."""

import json
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

FILE = Path(__file__).parent / "wan" / "original_names.json"


def original_keys() -> list[str]:
    """The keys of one block and of everything outside of the blocks, I2V included."""
    outside = ["patch_embedding", "time_projection.1", "head.head"]
    outside += [f"{kind}_embedding.{i}" for kind in ("time", "text") for i in (0, 2)]
    outside += [f"img_emb.proj.{i}" for i in (0, 1, 3, 4)]
    inside = [f"self_attn.{x}" for x in "qkvo"] + [f"cross_attn.{x}" for x in "qkvo"]
    inside += ["cross_attn.k_img", "cross_attn.v_img", "norm3", "ffn.0", "ffn.2"]
    stems = [*outside, *(f"blocks.0.{name}" for name in inside)]
    norms = ["self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_k_img"]
    norms += ["cross_attn.norm_q", "cross_attn.norm_k"]
    return [
        *(f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")),
        *(f"blocks.0.{name}.weight" for name in norms),
        "blocks.0.modulation",
        "head.modulation",
    ]


def main() -> None:
    """Asks diffusers, key by key."""
    names = {}
    for key in original_keys():
        (name,) = convert_wan_transformer_to_diffusers({key: torch.zeros(2)})
        names[key] = name
    FILE.write_text(json.dumps(names, indent=1) + "\n")


if __name__ == "__main__":
    main()
