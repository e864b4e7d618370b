"""HunyuanVideo's weights under the key names of its authors, and ComfyUI's spelling."""

import json
import re
from collections.abc import Mapping

import numpy as np

from tests.golden import hunyuan_video_cases as cases

NAMES = json.loads((cases.FOLDER / "original_names.json").read_text())
# The authors' spelling -> ComfyUI's.
COMFY = (
    ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
    ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
    ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
    ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
    ("_mod.linear.", "_mod.lin."),
    ("_attn_qkv.", "_attn.qkv."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
    ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
    (".q_norm.weight", ".norm.query_norm.scale"),
    (".k_norm.weight", ".norm.key_norm.scale"),
    ("_attn_proj.", "_attn.proj."),
    (".modulation.linear.", ".modulation.lin."),
    ("_in.mlp.2.", "_in.out_layer."),
    ("_in.mlp.0.", "_in.in_layer."),
)


def in_comfy(key: str) -> str:
    """ComfyUI's spelling of an original key."""
    for theirs, comfy in COMFY:
        key = key.replace(theirs, comfy)
    return key


def original(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as the authors store them: what diffusers cuts is joined."""
    found = {}
    for key, parts in NAMES.items():
        numbers = {0}
        if ".0." in key and "_in.mlp" not in key and "t_embedder" not in key:
            first = next(iter(parts))
            kind = re.search(r"(transformer|refiner)_blocks\.", first)
            prefix = first[: kind.end()] if kind else ""
            numbers = {
                int(m[1])
                for w in weights
                if prefix and (m := re.match(re.escape(prefix) + r"(\d+)\.", w))
            }
        for number in numbers or {0}:
            named = {
                re.sub(r"blocks\.0\.", f"blocks.{number}.", name): runs
                for name, runs in parts.items()
            }
            if not named.keys() <= weights.keys():
                continue
            arrays = [weights[name] for name in named]
            joined = np.concatenate(arrays)
            if len(next(iter(named.values()))) > 1:  # scale before shift
                joined = np.concatenate(np.split(joined, 2)[::-1])
            found[re.sub(r"blocks\.0\.", f"blocks.{number}.", key)] = joined
    return found
