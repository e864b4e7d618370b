"""The PyTorch peers of HunyuanVideo: its blocks alone, some of either kind."""

from collections.abc import Callable
from typing import Any

from sixbit_jax.benchmark.subject import Subject

LAYERS = 2
"""Of either kind; a time is scaled by what all of them would take."""


def blocks(torch: Any, subject: Subject, kind: str) -> Callable:
    """`LAYERS` dual or single blocks in plain PyTorch.

    Attention is over all tokens: padding of the text is not hidden, which would keep
    PyTorch from its fast kernels.

    Args:
      torch: the module.
      subject: what is sampled.
      kind: "dual" or "single".
    """
    from torch.nn import functional as F  # pyrefly: ignore[missing-import]

    config: Any = subject.config
    dim, hidden, heads = config.dim, config.hidden, config.num_attention_heads
    head_dim, tokens = config.attention_head_dim, subject.tokens
    video = tokens - subject.text_rows
    options = {"device": "cuda", "dtype": torch.bfloat16}

    def weight(n: int, k: int) -> tuple[Any, Any]:
        return torch.randn(n, k, **options) * k**-0.5, torch.zeros(n, **options)

    def dual_weights() -> Any:
        square = [weight(dim, dim) for _ in range(4)]
        return (*square, weight(hidden, dim), weight(dim, hidden))

    modulation = 0.1 * torch.randn(6, dim, device="cuda")
    ones = torch.ones(head_dim, **options)
    angles = torch.rand(tokens, head_dim // 2, device="cuda")
    cos, sin = angles.cos(), angles.sin()
    start = torch.randn(1, tokens, dim, **options)

    def norm(x: Any, index: int) -> Any:
        y = F.layer_norm(x.float(), (dim,), eps=1e-6)
        return (y * (1 + modulation[index + 1]) + modulation[index]).to(x.dtype)

    def split(x: Any) -> Any:
        return x.unflatten(-1, (heads, head_dim)).transpose(1, 2)

    def head_norm(x: Any) -> Any:
        return F.rms_norm(x, (head_dim,), ones, 1e-6)

    def rotate(x: Any) -> Any:
        pairs = x.float().unflatten(-1, (-1, 2))
        real, imaginary = pairs.unbind(-1)
        turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)

    def attend(q: Any, k: Any, v: Any) -> Any:
        q, k = (rotate(head_norm(split(part))) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, split(v))
        return mixed.transpose(1, 2).flatten(-2)

    def gated(x: Any, index: int, y: Any) -> Any:
        return (x + modulation[index] * y).to(x.dtype)

    def dual() -> Any:
        streams = [start[:, :video], start[:, video:]]
        for layer in made:
            parts = [
                [F.linear(norm(x, 0), *w) for w in weights[:3]]
                for x, weights in zip(streams, layer, strict=True)
            ]
            mixed = attend(*(torch.cat(pair, 1) for pair in zip(*parts, strict=True)))
            mixed = (mixed[:, :video], mixed[:, video:])
            for i, weights in enumerate(layer):
                x = gated(streams[i], 2, F.linear(mixed[i], *weights[3]))
                y = F.gelu(F.linear(norm(x, 3), *weights[4]), approximate="tanh")
                streams[i] = gated(x, 5, F.linear(y, *weights[5]))
        return streams

    def single() -> Any:
        x = start
        for q, k, v, up, out in made:
            y = norm(x, 0)
            mixed = attend(F.linear(y, *q), F.linear(y, *k), F.linear(y, *v))
            wide = F.gelu(F.linear(y, *up), approximate="tanh")
            x = gated(x, 2, F.linear(torch.cat([mixed, wide], -1), *out))
        return x

    if kind == "dual":
        made: list[Any] = [(dual_weights(), dual_weights()) for _ in range(LAYERS)]
        return dual
    made = [
        (
            *(weight(dim, dim) for _ in range(3)),
            weight(hidden, dim),
            weight(dim, dim + hidden),
        )
        for _ in range(LAYERS)
    ]
    return single


def prepare(torch: Any, subject: Subject, time: Callable) -> Callable:
    """Builds and compiles both kinds.

    Args:
      torch: the module.
      subject: what is sampled.
      time: (torch, call) -> seconds of a call.

    Returns:
      What times them and yields records.
    """
    config: Any = subject.config
    counts = {"dual": config.num_layers, "single": config.num_single_layers}
    plain = {kind: blocks(torch, subject, kind) for kind in counts}
    compiled = {kind: torch.compile(call) for kind, call in plain.items()}
    for call in compiled.values():
        call()
    torch.cuda.synchronize()

    def run() -> Any:
        for name, calls in (("torch.compile", compiled), ("eager", plain)):
            seconds = {kind: time(torch, call) for kind, call in calls.items()}
            step = sum(s / LAYERS * counts[kind] for kind, s in seconds.items())
            yield {
                "model": subject.name,
                "tokens": subject.tokens,
                "program": f"PyTorch, {name}",
                "layers_timed": {kind: LAYERS for kind in counts},
                "layers_s": seconds,
                "skip_fraction": 0.0,
                "step_ms": step * 1e3,
            }

    return run
