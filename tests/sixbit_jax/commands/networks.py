"""A tiny random network of every kind, written as converted directories."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from sixbit_jax.checkpoint import save
from sixbit_jax.checkpoint.pair import NETWORKS, write_description
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.hunyuan_video.network import HunyuanVideoTransformer
from sixbit_jax.models.network import Description
from sixbit_jax.models.wan.network import WanTransformer
from tests.sixbit_jax.models import small, small_hunyuan_video, small_wan

PROMPTS = 1
TOKENS = 6
WIDTH = 32


@dataclass(frozen=True)
class Kind:
    """A kind of network, and what it is given.

    Attributes:
      make: seed -> network.
      frames: latent frames that are asked for.
      side: height and width of the latents.
      inputs: shapes of the conditions by name, without the axis of prompts.
      pair: two networks.
      steps: denoising steps; two for each network.
      tunable: whether `sixbit tune` takes it; otherwise what its refusal says.
    """

    make: Any
    frames: int = 3
    side: int = 4
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pair: bool = False
    steps: int = 2
    tunable: bool | str = True

    @property
    def description(self) -> Description:
        return self.make(0).description


def _filled(model_type: Any, config: Any, seed: int) -> Any:
    """A network with random weights; NumPy draws them, so that nothing is compiled."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: model_type(config, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(seed)

    def drawn(path: tuple[Any, ...], leaf: Any) -> Any:
        values = 0.1 * rng.standard_normal(leaf.shape, np.float32)
        # The scale of a norm, of one block or of all.
        scale = "norm" in jax.tree_util.keystr(path) and leaf.ndim <= 2
        return jnp.asarray(values + scale)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(drawn, state))


def cogvideox(**changes: Any) -> Any:
    config = small.small_config(num_layers=2, **changes)
    return cache(partial(_filled, CogVideoXTransformer, config))


def wan(**changes: Any) -> Any:
    config = small_wan.small_config(num_layers=2, **changes)
    return cache(partial(_filled, WanTransformer, config))


def hunyuan_video(**changes: Any) -> Any:
    config = small_hunyuan_video.small_config(num_single_layers=1, **changes)
    return cache(partial(_filled, HunyuanVideoTransformer, config))


_MASKED = "needs a mask of the prompt, a pooled prompt"
_IMAGE = "needs image_latents"
KINDS = {
    "cogvideox-2b": Kind(cogvideox(use_rotary_positional_embeddings=False)),
    "cogvideox-5b": Kind(cogvideox()),
    "cogvideox1.5": Kind(cogvideox(patch_size_t=2, patch_bias=False)),
    "cogvideox-5b-i2v": Kind(
        cogvideox(in_channels=8, use_learned_positional_embeddings=True),
        side=8,
        inputs={"image_latents": (3, 4, 8, 8)},
        tunable=_IMAGE,
    ),
    "cogvideox1.5-i2v": Kind(
        cogvideox(in_channels=8, patch_size_t=2, patch_bias=False, ofs_embed_dim=64),
        inputs={"image_latents": (3, 4, 4, 4)},
        tunable=_IMAGE,
    ),
    "wan2.1-t2v": Kind(wan()),
    "wan2.1-i2v": Kind(
        wan(in_channels=9, image_dim=24, added_kv_proj_dim=128),
        inputs={"image_latents": (3, 5, 4, 4), "image_embeds": (6, 24)},
        tunable="needs image_latents, image_embeds",
    ),
    "wan2.2-ti2v": Kind(
        wan(in_channels=48, out_channels=48), inputs={"first_frames": (1, 48, 4, 4)}
    ),
    "wan2.2-t2v-a14b": Kind(wan(), pair=True, steps=4, tunable="found a pair"),
    "wan2.2-i2v-a14b": Kind(
        wan(in_channels=9),
        inputs={"image_latents": (3, 5, 4, 4)},
        pair=True,
        steps=4,
        tunable="found a pair",
    ),
    "hunyuanvideo": Kind(hunyuan_video(), steps=3, tunable=_MASKED),
    "hunyuanvideo-i2v": Kind(
        hunyuan_video(image_condition_type="token_replace"),
        inputs={"first_frames": (1, 4, 4, 4)},
        steps=3,
        tunable=_MASKED,
    ),
    "hunyuanvideo-i2v-concat": Kind(
        hunyuan_video(
            image_condition_type="latent_concat", in_channels=9, guidance_embeds=False
        ),
        inputs={"image_latents": (3, 5, 4, 4)},
        # Without guidance a run has one branch: a fit needs two pairs of steps.
        steps=3,
        tunable="needs image_latents, a mask of the prompt, a pooled prompt",
    ),
}
"""By the published model that has this form."""


def write(kind: Kind, folder: Path) -> Path:
    """A converted directory of a kind, without a scheduler."""
    if not kind.pair:
        save(kind.make(0), folder)
        return folder
    folder.mkdir()
    write_description(folder, 0.875)
    for seed, name in enumerate(NETWORKS):
        save(kind.make(seed), folder / name)
    return folder


def write_inputs(kind: Kind, folder: Path) -> list[str]:
    """Files of prompts and conditions, and the options that name them."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal((PROMPTS, *shape), np.float32)

    file = folder / "prompts.safetensors"
    texts = {
        "prompt_embeds": drawn(TOKENS, WIDTH),
        "negative_prompt_embeds": drawn(TOKENS, WIDTH),
    }
    spec = kind.description.conditions.prompt
    if spec.masked:
        mask = np.arange(TOKENS) < TOKENS - 2
        texts["prompt_attention_mask"] = np.tile(mask, (PROMPTS, 1)).astype(np.int32)
    if spec.pooled_width is not None:
        texts["pooled_prompt_embeds"] = drawn(spec.pooled_width)
    save_file(texts, file)
    options = [f"--prompt-embeds={file}"]
    for name, shape in kind.inputs.items():
        file = folder / f"{name}.safetensors"
        save_file({name: drawn(*shape)}, file)
        options.append(f"--{name.replace('_', '-')}={file}")
    return options
