"""The networks of the small pipeline: configurations, and how they are initialized."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sixbit_jax.demo import model as pixels
from sixbit_jax.demo.latent import tokens, vae, world
from sixbit_jax.demo.model import COGVIDEOX, DemoModel
from sixbit_jax.demo.recipe import Recipe
from sixbit_jax.text_encoders.t5 import T5Encoder
from sixbit_jax.text_encoders.t5_config import T5Config

LATENT = world.SIZE // 8
LATENT_FRAMES = (world.FRAMES - 1) // 4 + 1
LATENT_SHAPE = (LATENT_FRAMES, vae.CONFIG.latent_channels, LATENT, LATENT)
WIDTH, LAYERS = 256, 8
GUIDANCE_SCALE = 6.0

T5 = T5Config(
    # A multiple of 128 with room for every piece and letter.
    vocab_size=256,
    d_model=256,
    d_kv=64,
    d_ff=512,
    num_layers=2,
    num_heads=4,
)


def transformer_config() -> dict[str, Any]:
    """The transformer's diffusers `config.json`."""
    return pixels.model_config() | {
        "in_channels": vae.CONFIG.latent_channels,
        "out_channels": vae.CONFIG.latent_channels,
        "max_text_seq_length": tokens.MAX_TOKENS,
        "num_attention_heads": WIDTH // 64,
        "num_layers": LAYERS,
        # A token per latent pixel: 1,792 of them, as many as two CPU cores take.
        "patch_size": 1,
        "sample_frames": world.FRAMES,
        "sample_height": LATENT,
        "sample_width": LATENT,
        "temporal_compression_ratio": 4,
        "text_embed_dim": T5.d_model,
        "time_embed_dim": 128,
    }


def scheduler_config() -> dict[str, Any]:
    """The diffusers `scheduler_config.json`; shifted to noise, as CogVideoX-2b's.

    Neighbouring latents say much the same, so that what a video shows is decided where
    there is hardly any signal.
    """
    return pixels.scheduler_config() | {"snr_shift_scale": 3.0}


TRANSFORMER = DemoModel(
    name="latent",
    model_class=COGVIDEOX.model_class,
    pipeline="CogVideoXPipeline",
    config=transformer_config,
    scheduler_config=scheduler_config,
    renamed=COGVIDEOX.renamed,
    zero=COGVIDEOX.zero,
    recipe=Recipe(batch=64, high_noise_share=0.25, high_noise_from=600),
    guidance_scale=GUIDANCE_SCALE,
)

# What every latent pixel is asked about in training: how much of it each object covers,
# times its shape and colour.
SIGNS = len(world.SHAPES) + len(world.COLOUR_NAMES) + 2


def new_text_encoder(seed: int = 0) -> T5Encoder:
    """An untrained T5, initialized as transformers does: its scores are not scaled."""

    @nnx.jit
    def make() -> T5Encoder:
        return T5Encoder(T5, rngs=nnx.Rngs(seed))

    encoder = make()
    graph, state = nnx.split(encoder)
    flat = nnx.to_flat_state(state)
    inner = T5.num_heads * T5.d_kv
    scales = {
        "q": (T5.d_model * T5.d_kv) ** -0.5,
        "k": T5.d_model**-0.5,
        "v": T5.d_model**-0.5,
        "o": inner**-0.5,
        "wi_0": T5.d_model**-0.5,
        "wi_1": T5.d_model**-0.5,
        "wo": T5.d_ff**-0.5,
        "relative_attention_bias": T5.d_model**-0.5,
    }
    result = []
    for number, (path, variable) in enumerate(flat):
        name, value = str(path[-2]), variable.get_value()
        if name in scales:
            key = jax.random.fold_in(jax.random.key(seed), number)
            value = scales[name] * jax.random.normal(key, value.shape)
        result.append((path, variable.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(result))


class _OneHotEmbedding(nnx.Module):
    """A lookup as a product: its gradient is one too, not a sum of single rows.

    Half of all tokens are padding, and adding thousands of 16-bit rows to the same one
    took as long as the rest of a step.
    """

    def __init__(self, table: Any):
        self.weight = table.weight

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        weight = self.weight[...]
        chosen = jax.nn.one_hot(ids, weight.shape[0], dtype=weight.dtype)
        return (chosen @ weight).astype(jnp.float32)


def encode_text(
    graph: Any, params: Any, ids: Int[Array, "batch T"], *, dtype: Any
) -> Float[Array, "batch T E"]:
    """Prompt embeddings, made to be differentiated."""
    encoder = nnx.merge(graph, params)
    encoder.shared = _OneHotEmbedding(encoder.shared)
    return encoder(ids, dtype=dtype)


def new_params(seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Structures and untrained parameters of what is trained together."""
    key = jax.random.key(seed + 17)
    first, second = jax.random.split(key)
    names = list(world.NAMES.values())
    heads = {
        "signs": 0.02 * jax.random.normal(first, (WIDTH, SIGNS)),
        "words": 0.02
        * jax.random.normal(second, (T5.d_model, sum(len(n) for n in names))),
    }
    transformer = nnx.split(TRANSFORMER.new(seed))
    text = nnx.split(new_text_encoder(seed))
    graphs = {"transformer": transformer[0], "text": text[0]}
    params = {"transformer": transformer[1], "text": text[1], "heads": heads}
    return graphs, params


def forward(
    graph: Any,
    params: Any,
    latents: Float[Array, "batch F C H W"],
    text: Float[Array, "batch T E"],
    timestep: Int[Array, " batch"],
) -> tuple[Float[Array, "batch F C H W"], Float[Array, "batch tokens D"]]:
    """The prediction, and the video tokens after half of the blocks."""
    network = nnx.merge(graph, params)
    x, conditioning = network.embed(latents, text, timestep.astype(jnp.float32))
    block_graph, blocks = nnx.split(network.transformer_blocks)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return nnx.merge(block_graph, layer)(x, conditioning)[0], None

    half = LAYERS // 2
    first, last = (
        jax.tree.map(lambda p, part=part: p[part], blocks)
        for part in (slice(0, half), slice(half, None))
    )
    x, _ = jax.lax.scan(body, x, first)
    middle = x[:, conditioning.num_text :]
    x, _ = jax.lax.scan(body, x, last)
    return network.unembed(x, conditioning, latents.shape), middle


def word_loss(
    graph: Any, params: Any, data: Any, key: Key[Array, ""], *, batch: int
) -> tuple[Array, dict[str, Array]]:
    """Whether attributes can be read from prompt embeddings, by one linear map.

    It is asked of the mean of all rows and of one row: what a transformer learns
    to draw from is there before it begins.
    """
    k_row, k_place = jax.random.split(key)
    chosen = jax.random.randint(k_row, (batch,), 0, data["rows"].shape[0])
    ids, rows = data["ids"][chosen, 0].astype(jnp.int32), data["rows"][chosen]
    embeds = encode_text(graph, params["text"], ids, dtype=jnp.float32)
    place = jax.random.randint(k_place, (batch,), 0, ids.shape[1])
    one = jnp.take_along_axis(embeds, place[:, None, None], 1)[:, 0]
    total, right = jnp.float32(0), jnp.float32(0)
    for read in (embeds.mean(1), one):
        scores = read @ params["heads"]["words"]
        start = 0
        for column, names in enumerate(world.NAMES.values()):
            part = jax.nn.log_softmax(scores[:, start : start + len(names)])
            start += len(names)
            wanted = rows[:, column]
            total -= jnp.take_along_axis(part, wanted[:, None], 1).mean()
            right += (part.argmax(-1) == wanted).mean()
    count = 2 * len(world.NAMES)
    return total / count, {"words_right": right / count}
