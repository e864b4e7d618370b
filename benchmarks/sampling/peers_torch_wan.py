"""The PyTorch peers of Wan: diffusers' transformer, or its blocks alone."""

from collections.abc import Callable

from sixbit_jax.benchmark.subject import Subject


def diffusers_model(torch, subject: Subject, layers: int) -> Callable:
    """One call of diffusers' transformer with `layers` layers, on random weights."""
    from diffusers import (  # pyrefly: ignore[missing-import]
        WanTransformer3DModel,
    )

    config = subject.config.to_dict() | {"num_layers": layers}
    frames, channels, height, width = subject.latent_shape
    with torch.device("cuda"):
        model = WanTransformer3DModel(**config).to(torch.bfloat16).eval()
        x = torch.randn(1, channels, frames, height, width, dtype=torch.bfloat16)
        text = torch.randn(1, subject.words, config["text_dim"], dtype=torch.bfloat16)
        when = torch.tensor([500])
    return lambda: model(
        hidden_states=x,
        timestep=when,
        encoder_hidden_states=text,
        return_dict=False,
    )[0]


def blocks(torch, subject: Subject, layers: int) -> Callable:
    """Wan's blocks in plain PyTorch; keys and values of the prompt are given."""
    from torch.nn import functional as F  # pyrefly: ignore[missing-import]

    config = subject.config
    dim, heads, eps = config.dim, config.num_attention_heads, 1e-6
    head_dim, tokens = config.attention_head_dim, subject.tokens
    options = {"device": "cuda", "dtype": torch.bfloat16}

    def weight(n, k):
        return torch.randn(n, k, **options) * k**-0.5, torch.zeros(n, **options)

    def layer():
        square = [weight(dim, dim) for _ in range(6)]
        wide = [weight(subject.ffn_dim, dim), weight(dim, subject.ffn_dim)]
        words = (1, heads, subject.words, head_dim)
        prompt = [torch.randn(words, **options) for _ in range(2)]
        return (*square, *wide, *prompt)

    made = [layer() for _ in range(layers)]
    modulation = 0.1 * torch.randn(6, dim, device="cuda")
    ones = torch.ones(dim, **options)
    angles = torch.rand(tokens, head_dim // 2, device="cuda")
    cos, sin = angles.cos(), angles.sin()
    start = torch.randn(1, tokens, dim, **options)

    def norm(x, index):
        y = F.layer_norm(x.float(), (dim,), eps=eps)
        return (y * (1 + modulation[index + 1]) + modulation[index]).to(x.dtype)

    def split(x):
        return x.unflatten(-1, (heads, head_dim)).transpose(1, 2)

    def rotate(x):
        pairs = x.float().unflatten(-1, (-1, 2))
        real, imaginary = pairs.unbind(-1)
        turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)

    def attend(query, key, value, out):
        mixed = F.scaled_dot_product_attention(query, key, value)
        return F.linear(mixed.transpose(1, 2).flatten(-2), *out)

    def forward():
        x = start
        for q, k, v, out, cross_q, cross_out, up, down, keys, values in made:
            y = norm(x, 0)
            query, key = (
                rotate(split(F.rms_norm(F.linear(y, *w), (dim,), ones, eps)))
                for w in (q, k)
            )
            mixed = attend(query, key, split(F.linear(y, *v)), out)
            x = (x + modulation[2] * mixed).to(x.dtype)
            y = F.layer_norm(x, (dim,), ones, torch.zeros_like(ones), eps)
            query = split(F.rms_norm(F.linear(y, *cross_q), (dim,), ones, eps))
            x = x + attend(query, keys, values, cross_out)
            y = F.gelu(F.linear(norm(x, 3), *up), approximate="tanh")
            x = (x + modulation[5] * F.linear(y, *down)).to(x.dtype)
        return x

    return forward
