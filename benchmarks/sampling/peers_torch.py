"""The PyTorch peer: diffusers' transformer if it is installed, else its block alone.

Eight layers are timed and scaled to the model's number, for both guidance branches.
Records are empty where PyTorch or a GPU is missing.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.sampling import peers_torch_hunyuan
from benchmarks.sampling import peers_torch_wan as sampling_torch_wan
from sixbit_jax.benchmark.subject import Subject
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.wan.config import WanConfig

_LAYERS = 8


def prepare_peers(subject: Subject) -> Callable[[], Iterator[dict[str, Any]]]:
    """Builds and compiles what can be built here.

    Returns:
      What times it and yields records.
    """
    if importlib.util.find_spec("torch") is None:
        return lambda: iter(())
    import torch  # pyrefly: ignore[missing-import]

    if not torch.cuda.is_available():
        return lambda: iter(())
    torch.set_grad_enabled(False)
    if isinstance(subject.config, HunyuanVideoConfig):
        return peers_torch_hunyuan.prepare(torch, subject, partial(_time, calls=2))
    layers = min(_LAYERS, subject.config.num_layers)
    if isinstance(subject.config, WanConfig):
        networks = (sampling_torch_wan.diffusers_model, sampling_torch_wan.blocks)
    else:
        networks = (_diffusers, _blocks)
    if importlib.util.find_spec("diffusers") is not None:
        source, call = "diffusers", networks[0](torch, subject, layers)
    else:
        source, call = "PyTorch", networks[1](torch, subject, layers)
    compiled = torch.compile(call)
    compiled()
    torch.cuda.synchronize()

    def run() -> Iterator[dict[str, Any]]:
        for name, function in (("torch.compile", compiled), ("eager", call)):
            seconds = _time(torch, function)
            scale = 2 * subject.config.num_layers / layers
            yield {
                "model": subject.name,
                "tokens": subject.tokens,
                "program": f"{source}, {name}",
                "layers_timed": layers,
                "skip_fraction": 0.0,
                "step_ms": scale * seconds * 1e3,
            }

    return run


def _time(torch, call: Callable, calls: int = 5) -> float:
    call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls


def _diffusers(torch, subject: Subject, layers: int) -> Callable:
    from diffusers import (  # pyrefly: ignore[missing-import]
        CogVideoXTransformer3DModel,
    )

    network: Any = subject.config
    config = network.to_dict() | {"num_layers": layers}
    with torch.device("cuda"):
        model = CogVideoXTransformer3DModel(**config).to(torch.bfloat16).eval()
        x = torch.randn(1, *subject.latent_shape, dtype=torch.bfloat16)
        text = torch.randn(
            1,
            config["max_text_seq_length"],
            config["text_embed_dim"],
            dtype=torch.bfloat16,
        )
        when = torch.tensor([500])
        tokens = subject.tokens - config["max_text_seq_length"]
        table = torch.rand(tokens, subject.config.attention_head_dim)
    rotary = (table.cos(), table.sin())
    if not network.use_rotary_positional_embeddings:
        rotary = None
    return lambda: model(
        hidden_states=x,
        encoder_hidden_states=text,
        timestep=when,
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]


def _blocks(torch, subject: Subject, layers: int) -> Callable:
    """CogVideoX blocks in plain PyTorch."""
    from torch.nn import functional as F  # pyrefly: ignore[missing-import]

    config: Any = subject.config
    dim, heads = config.dim, config.num_attention_heads
    head_dim = config.attention_head_dim
    tokens, text = subject.tokens, config.max_text_seq_length
    options = {"device": "cuda", "dtype": torch.bfloat16}

    def weight(n, k):
        return torch.randn(n, k, **options) * k**-0.5, torch.zeros(n, **options)

    def layer():
        square = [weight(dim, dim) for _ in range(4)]
        return (*square, weight(4 * dim, dim), weight(dim, 4 * dim))

    blocks = [layer() for _ in range(layers)]
    modulation = 0.1 * torch.randn(12, dim, **options)
    angles = torch.rand(tokens, head_dim // 2, device="cuda")
    cos, sin = angles.cos(), angles.sin()
    is_text = (torch.arange(tokens, device="cuda") < text)[:, None]
    start = torch.randn(1, tokens, dim, **options)

    def rows(index):
        return torch.where(is_text, modulation[index + 6], modulation[index])

    def norm(x, index):
        y = F.layer_norm(x, (dim,)) * (1 + rows(index + 1)) + rows(index)
        return y.to(torch.bfloat16)

    def rotate(x):
        if not config.use_rotary_positional_embeddings:
            return x
        pairs = x.float().unflatten(-1, (-1, 2))
        real, imaginary = pairs.unbind(-1)
        turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)

    def forward():
        x = start
        for q, k, v, out, up, down in blocks:
            y = norm(x, 0)
            parts = [
                F.linear(y, *w).unflatten(-1, (heads, head_dim)).transpose(1, 2)
                for w in (q, k, v)
            ]
            query, key = (rotate(F.layer_norm(p, (head_dim,))) for p in parts[:2])
            mixed = F.scaled_dot_product_attention(query, key, parts[2])
            x = x + rows(2) * F.linear(mixed.transpose(1, 2).flatten(-2), *out)
            y = F.gelu(F.linear(norm(x, 3), *up), approximate="tanh")
            x = x + rows(5) * F.linear(y, *down)
        return x

    return forward
