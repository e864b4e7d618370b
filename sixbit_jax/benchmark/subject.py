"""Networks of real size with random weights, made on the device.

Every stacked leaf is drawn and quantized layer by layer inside one compiled loop, so
that neither a second copy nor the bf16 weights of an NVFP4 model ever exist.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.formats import CorrectedArray, NVFP4Array
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.description import TEXT_LENGTH
from sixbit_jax.models.hunyuan_video.network import HunyuanVideoTransformer
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.network import WanTransformer
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe
from sixbit_jax.quantizers.storage import rotation_of
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.sampling.options import Prompt
from sixbit_jax.sampling.schedulers import CogVideoXDDIM, Scheduler, UniPC
from sixbit_jax.sampling.schedulers.choice import choose_scheduler

Config = CogVideoXConfig | WanConfig | HunyuanVideoConfig
_NETWORKS: dict[type, Any] = {
    CogVideoXConfig: CogVideoXTransformer,
    WanConfig: WanTransformer,
    HunyuanVideoConfig: HunyuanVideoTransformer,
}
# Of Wan's prompts; CogVideoX has the number in its configuration.
_WAN_WORDS = 512
_FIVE_B = {
    "num_attention_heads": 48,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
CONFIGS: dict[str, Config] = {
    "2b": CogVideoXConfig(),
    "5b": CogVideoXConfig(**_FIVE_B),
    "1.5": CogVideoXConfig(
        **_FIVE_B, patch_size_t=2, sample_width=170, sample_height=96, sample_frames=81
    ),
    "wan-1.3b": WanConfig(num_attention_heads=12, num_layers=30, ffn_dim=8960),
    "wan-14b": WanConfig(),
    "hunyuan-video": HunyuanVideoConfig(),
}
# Latent sizes of the published default videos: 49 frames of 480x720; 81 of 768x1360;
# Wan: 81 frames of 480x832; HunyuanVideo: 129 frames of 720x1280.
_WAN_SIZE = (21, 60, 104)
SIZES = {
    "2b": (13, 60, 90),
    "5b": (13, 60, 90),
    "1.5": (22, 96, 170),
    "wan-1.3b": _WAN_SIZE,
    "wan-14b": _WAN_SIZE,
    "hunyuan-video": (33, 90, 160),
}


class Subject(NamedTuple):
    """What is sampled: a network's configuration and the size of one video's latents.

    Attributes:
      name: of the model, for records.
      config: of the network.
      size: latent frames, height, width.
    """

    name: str
    config: Config
    size: tuple[int, int, int]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(F, C, H, W) of one video."""
        frames, height, width = self.size
        return frames, self.config.out_channels, height, width

    @property
    def text_rows(self) -> int:
        """Text tokens in the residual stream: Wan has its text in cross-attention."""
        if isinstance(self.config, WanConfig):
            return 0
        if isinstance(self.config, HunyuanVideoConfig):
            return TEXT_LENGTH
        return self.config.max_text_seq_length

    @property
    def tokens(self) -> int:
        """Tokens of one video's residual stream."""
        return self.text_rows + math.prod(self.config.token_grid(*self.size))

    @property
    def words(self) -> int:
        """Tokens of a prompt."""
        return self.text_rows or _WAN_WORDS

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward's hidden layer."""
        if isinstance(self.config, WanConfig):
            return self.config.ffn_dim
        if isinstance(self.config, HunyuanVideoConfig):
            return self.config.hidden
        return 4 * self.config.dim

    @property
    def blocks(self) -> int:
        """Blocks of all stacks together."""
        return _NETWORKS[type(self.config)].describe(self.config).num_blocks


def subject(
    name: str, *, frames: int | None, height: int | None, width: int | None
) -> Subject:
    """The model of a name or a diffusers `config.json`, at its default size or another.

    Raises:
      ValueError: neither a known name nor a file, or sizes that do not fit.
      OSError: the file cannot be read.
    """
    if name in CONFIGS:
        config, size = CONFIGS[name], SIZES[name]
    else:
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"--model: expected one of {', '.join(CONFIGS)} or a config.json, "
                f"found {name!r}"
            )
        values = read_json_object(path)
        if values.get("_class_name") == WanTransformer.class_name:
            config, size = WanConfig.from_dict(values), _WAN_SIZE
        elif values.get("_class_name") == HunyuanVideoTransformer.class_name:
            config = HunyuanVideoConfig.from_dict(values)
            size = SIZES["hunyuan-video"]
        else:
            config = CogVideoXConfig.from_dict(values)
            size = (
                config.sample_latent_frames,
                config.sample_height,
                config.sample_width,
            )
        name = path.stem
    chosen = [
        default if given is None else given
        for given, default in zip((frames, height, width), size, strict=True)
    ]
    config.token_grid(*chosen)
    return Subject(name, config, (chosen[0], chosen[1], chosen[2]))


def scheduler_of(subject: Subject) -> Scheduler:
    """The published scheduler; of CogVideoX only constants depend on the model."""
    if isinstance(subject.config, WanConfig):
        return UniPC(flow_shift=3.0)
    if isinstance(subject.config, HunyuanVideoConfig):
        description = HunyuanVideoTransformer.describe(subject.config)
        return choose_scheduler(description, None)
    return CogVideoXDDIM(snr_shift_scale=3.0 if subject.name == "2b" else 1.0)


def _draw(key, *, shape: tuple[int, ...], kind: str, rotation: int | None) -> Any:
    """One layer's leaf."""
    if kind == "ones":
        return jnp.ones(shape, jnp.bfloat16)
    if kind == "zeros":
        return jnp.zeros(shape, jnp.bfloat16)
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    weight = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    if rotation is None:
        return weight.astype(jnp.bfloat16)
    return NVFP4Array.quantize(weight, rotation=rotation)


# One compilation for all leaves of a shape.
@partial(jax.jit, static_argnames=("layers", "shape", "kind", "rotation"))
def _leaf(key, *, layers: int, shape, kind: str, rotation: int | None) -> Any:
    """A leaf of the model; `layers` of them stacked, one in work at a time."""
    draw = partial(_draw, shape=shape, kind=kind, rotation=rotation)
    if not layers:
        return draw(key)
    return jax.lax.map(draw, jax.random.split(key, layers))


def _kind(path: str, shape: tuple[int, ...]) -> str:
    if len(shape) > 1:
        return "weight"
    return "ones" if path.endswith(".weight") else "zeros"


# One compilation for all leaves of a shape.
@partial(jax.jit, static_argnames=("rank",))
def _beside(key, weight: NVFP4Array, *, rank: int) -> CorrectedArray:
    """A stored weight with the LoRA that `fuse_lora` would put beside it."""
    *lead, rows, columns = weight.shape
    first, second = jax.random.split(key)
    return CorrectedArray(
        weight,
        jax.random.normal(first, (*lead, rank, columns)) / columns**0.5,
        jax.random.normal(second, (*lead, rows, rank)) * 0.01,
        jnp.ones((*lead, 1), jnp.float32),
        live=True,
    )


def _with_lora(make: Callable[[Any], Any], key, *, rank: int) -> CorrectedArray:
    return _beside(jax.random.fold_in(key, 1), make(key), rank=rank)


def random_model(
    config: Config,
    *,
    quantized: bool,
    abstract: bool = False,
    seed: int = 0,
    lora_rank: int = 0,
) -> Any:
    """A model with random weights in bf16, or in NVFP4 wherever `convert` would.

    Args:
      config: of the network.
      quantized: NVFP4 weights; the bf16 ones never exist.
      abstract: shapes and dtypes only.
      seed: of the weights.
      lora_rank: of a LoRA beside every quantized linear of the blocks; 0 is none.
    """
    network = _NETWORKS[type(config)]
    empty = nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(empty)
    flat = dict(nnx.to_flat_state(state))
    keys = jax.random.split(jax.random.key(seed), len(flat))
    for key, (path, variable) in zip(keys, list(flat.items()), strict=True):
        name = ".".join(map(str, path))
        shape = tuple(variable.get_value().shape)
        layers = shape[0] if path[0] in network.stack_names else 0
        shape = shape[1:] if layers else shape
        rotation = role = None
        if quantized:
            role = network.weight_role(name)
            rotation = rotation_of(NVFP4Recipe(), role, shape[-1])
        make = partial(
            _leaf,
            layers=layers,
            shape=shape,
            kind=_kind(name, shape),
            rotation=rotation,
        )
        if lora_rank and role == "site":
            make = partial(_with_lora, make, rank=lora_rank)
        # Waiting for each: otherwise the temporaries of several are in flight.
        value = (
            jax.eval_shape(make, key) if abstract else jax.block_until_ready(make(key))
        )
        flat[path] = variable.replace(value)
    return nnx.merge(graph, nnx.from_flat_state(flat))


def weight_bytes(model: nnx.Module) -> int:
    """Stored bytes of all parameters."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)


def text_embeddings(subject: Subject, seed: int) -> jax.Array:
    """Random prompt embeddings, [1, T, E]."""
    shape = (1, subject.words, subject.config.text_embed_dim)
    return 0.1 * jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def prompts(subject: Subject) -> Prompt:
    """Random prompts as the network takes them; half of masked ones is padding."""
    text, negative = (text_embeddings(subject, seed) for seed in (1, 2))
    if not isinstance(subject.config, HunyuanVideoConfig):
        return Prompt(text, negative)
    mask = jnp.arange(subject.words)[None] < subject.words // 2
    shape = (1, subject.config.pooled_projection_dim)
    pooled = jax.random.normal(jax.random.key(3), shape, jnp.bfloat16)
    return Prompt(text, mask=mask, pooled=pooled)


def forward_flops(subject: Subject) -> tuple[float, float]:
    """Floating point operations of one forward pass of one video.

    Two per multiply-accumulate; the linears of all sites, and the two products of
    attention. Modulation, embeddings and everything element-wise are left out.

    Returns:
      Of the linears and of attention.
    """
    config, tokens, dim = subject.config, subject.tokens, subject.config.dim
    weights, keys = 4 * dim**2 + 2 * dim * subject.ffn_dim, tokens
    if isinstance(config, WanConfig):
        # Cross-attention; its keys and values are made once per prompt.
        weights += 2 * dim**2
        keys += subject.words
    # Of HunyuanVideo's two kinds of blocks, each has as many weights per token.
    linear = 2 * weights * tokens * subject.blocks
    attention = 4 * tokens * keys * dim * subject.blocks
    return float(linear), float(attention)
