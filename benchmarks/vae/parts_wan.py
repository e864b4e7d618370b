"""Parts of the Wan decoder, at the sizes of one chunk."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.vae.parts import Part, normal
from sixbit_jax.vae.causal_conv import (
    METHODS,
    Method,
    Padding,
    conv2d,
    frames_conv,
    with_past,
)
from sixbit_jax.vae.wan_blocks import AttentionBlock, RMSNorm, WanStream
from sixbit_jax.vae.wan_config import WanVAEConfig
from sixbit_jax.vae.wan_conv import WanConv, stack
from sixbit_jax.vae.wan_network import UpBlock
from sixbit_jax.vae.wan_resample import Upsample

_LATENT_FRAMES = 1
_PAD = ((1, 1), (1, 1))


def _abstract(make: Callable[[], nnx.Module]) -> tuple[Any, Callable]:
    """The graph of a module, and what makes its parameters, bf16, from a key."""
    graph, state = nnx.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(state)

    def parameters(key: jax.Array) -> Any:
        return tree.unflatten(normal(*(leaf.shape for leaf in leaves))(key))

    return graph, parameters


def _in_stream(make: Callable[[], Any], shape: tuple[int, ...]) -> tuple:
    """A module as a function of parameters, past and chunk, and its operands."""
    graph, parameters = _abstract(make)

    def run(weights: Any, past: Any, x: jax.Array) -> Any:
        stream = WanStream(past, jnp.asarray(False))
        return nnx.merge(graph, weights)(x, stream), stream.state()

    def operands(key: jax.Array) -> tuple:
        weights, (x,) = parameters(key), normal(shape)(key)
        kept = jax.eval_shape(run, weights, None, x)[1]
        return weights, normal(*(one.shape for one in kept))(key), x

    return run, operands


def _convolutions(shape: tuple[int, ...], out: int) -> Iterator[Part]:
    """A 3x3x3 convolution: whole by each method, and its two steps."""
    frames, height, width, channels = shape
    flops = 54.0 * frames * height * width * channels * out
    before = (1, 2, height, width, channels)
    weight = (out, channels, 3, 3, 3)
    run, operands = _in_stream(
        lambda: WanConv(channels, out, 3, rngs=nnx.Rngs(0)), (1, *shape)
    )
    yield Part("causal_conv", "stacked", shape, run, operands, flops=flops)
    for method in METHODS:
        if method == "stacked":
            continue

        def other(past, x, weight, method: Method = method):
            joined = with_past(x, past, 2, Padding.ZEROS)
            y = frames_conv(joined.frames, weight, pad=_PAD, method=method)
            return y, joined.kept

        operands = normal(before, (1, *shape), weight)
        yield Part("causal_conv", method, shape, other, operands, flops=flops)
    wide = (1, frames, height, width, 3 * channels)
    yield Part(
        "conv2d of the stack",
        "xla",
        shape,
        partial(conv2d, pad=_PAD),
        normal(wide, (out, 3 * channels, 3, 3)),
        flops=flops,
    )
    nbytes = 2.0 * frames * height * width * channels
    yield Part(
        "stack", "xla", shape, stack, normal(before, (1, *shape)), bytes=4 * nbytes
    )


def all_parts(config: WanVAEConfig, height: int, width: int) -> Iterator[Part]:
    """The middle, and of every level: its block, convolution, norm, upsampling."""
    mult = config.dim_mult[::-1]
    dims = [config.decoder_dim * m for m in (mult[0], *mult)]
    frames = _LATENT_FRAMES
    attention, parameters = _abstract(lambda: AttentionBlock(dims[0], rngs=nnx.Rngs(0)))
    shape = (frames, height, width, dims[0])
    yield Part(
        "attention",
        "xla",
        shape,
        lambda weights, x: nnx.merge(attention, weights)(x),
        lambda key: (parameters(key), *normal((1, *shape))(key)),
    )
    group = 1
    for i, temporal in enumerate((*config.temperal_downsample[::-1], None)):
        given = dims[i] // 2 if i > 0 and not config.is_residual else dims[i]
        out = dims[i + 1]

        def block(given=given, out=out, group=group, temporal=temporal) -> UpBlock:
            blocks, residual = config.num_res_blocks + 1, config.is_residual
            options = {"temporal": temporal, "residual": residual}
            return UpBlock(given, out, blocks, group, rngs=nnx.Rngs(0), **options)

        shape = (frames, height, width, given)
        run, operands = _in_stream(block, (1, *shape))
        yield Part(f"level {i}", "xla", shape, run, operands)
        shape = (frames, height, width, out)
        yield from _convolutions(shape, out)
        norm, scales = _abstract(lambda out=out: RMSNorm(out))
        yield Part(
            "rms_silu",
            "xla",
            shape,
            lambda weights, x, norm=norm: nnx.merge(norm, weights)(x, silu=True),
            lambda key, scales=scales, shape=shape: (
                scales(key),
                *normal((1, *shape))(key),
            ),
            bytes=4.0 * frames * height * width * out,
        )
        if temporal is None:
            yield from _convolutions(shape, config.out_channels)
            break
        wide = out if config.is_residual else out // 2

        def upsample(out=out, wide=wide, group=group) -> Upsample:
            return Upsample(out, wide, group, temporal=False, rngs=nnx.Rngs(0))

        run, operands = _in_stream(upsample, (1, *shape))
        flops = 18.0 * 4 * frames * height * width * out * wide
        yield Part("upsample 2d", "xla", shape, run, operands, flops=flops)
        frames *= 2 if temporal else 1
        group *= 2 if temporal else 1
        height, width = 2 * height, 2 * width
