"""Makes `hunyuan_video/original_names.json`: diffusers' tensors of the original keys.

By original key, the name and the runs of rows of everything that diffusers makes of it.
"""

import json
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import (
    convert_hunyuan_video_transformer_to_diffusers,
)

FILE = Path(__file__).parent / "hunyuan_video" / "original_names.json"
# Their code cuts linear1 for this width alone.
DIM = 3072


def original_keys() -> dict[str, int]:
    """The keys of a block of each kind and of everything outside: key -> rows."""
    keys = dict.fromkeys(("img_in.proj", "final_layer.linear"), 4)
    keys |= {f"{name}_in.mlp.{i}": 4 for name in ("time", "guidance") for i in (0, 2)}
    keys |= {f"vector_in.{name}_layer": 4 for name in ("in", "out")}
    keys |= {"final_layer.adaLN_modulation.1": 8, "txt_in.input_embedder": 4}
    keys |= {f"txt_in.t_embedder.mlp.{i}": 4 for i in (0, 2)}
    keys |= {f"txt_in.c_embedder.linear_{i}": 4 for i in (1, 2)}
    refiner = "txt_in.individual_token_refiner.blocks.0."
    inside = ("norm1", "norm2", "self_attn_proj", "mlp.fc1", "mlp.fc2")
    keys |= {refiner + name: 4 for name in (*inside, "adaLN_modulation.1")}
    keys |= {refiner + "self_attn_qkv": 9}
    for kind in ("img", "txt"):
        names = ("_mod.linear", "_attn_proj", "_mlp.fc1", "_mlp.fc2")
        keys |= {f"double_blocks.0.{kind}{name}": 4 for name in names}
        keys |= {f"double_blocks.0.{kind}_attn_qkv": 9}
    keys |= {"single_blocks.0.modulation.linear": 4, "single_blocks.0.linear2": 4}
    keys |= {"single_blocks.0.linear1": 7 * DIM}
    found = {f"{k}.{leaf}": n for k, n in keys.items() for leaf in ("weight", "bias")}
    for kind in ("double_blocks.0.img_attn_", "double_blocks.0.txt_attn_"):
        found |= {f"{kind}{x}_norm.weight": 4 for x in "qk"}
    return found | {f"single_blocks.0.{x}_norm.weight": 4 for x in "qk"}


def runs(rows: list[int]) -> list[list[int]]:
    """(first, after the last) of the runs of numbers that follow each other."""
    found = [[rows[0], rows[0] + 1]]
    for row in rows[1:]:
        if row == found[-1][1]:
            found[-1][1] += 1
        else:
            found.append([row, row + 1])
    return found


def main() -> None:
    """Asks diffusers, key by key."""
    names = {}
    for key, rows in original_keys().items():
        made = convert_hunyuan_video_transformer_to_diffusers({key: torch.arange(rows)})
        names[key] = {name: runs(value.tolist()) for name, value in made.items()}
    FILE.write_text(json.dumps(names, indent=1) + "\n")


if __name__ == "__main__":
    main()
