"""Where the Wan decoder's time goes: its parts alone, at the sizes of one chunk."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sixbit_jax.benchmark.harness import REPEATS, device_ms
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


@dataclasses.dataclass(frozen=True)
class Part:
    """One operation at one size.

    Attributes:
      op: what it is.
      implementation: who computes it.
      shape: of the activation, [frames, height, width, channels].
      function: of the operands.
      operands: made from a key.
      flops, bytes: arithmetic, and what must be read and written at least.
    """

    op: str
    implementation: str
    shape: tuple[int, ...]
    function: Callable
    operands: Callable
    flops: float = 0.0
    bytes: float = 0.0


def _normal(*shapes: tuple[int, ...]) -> Callable:
    def make(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(shapes))
        return tuple(
            jax.random.normal(k, shape, jnp.bfloat16)
            for k, shape in zip(keys, shapes, strict=True)
        )

    return make


def _abstract(make: Callable[[], nnx.Module]) -> tuple[Any, Callable]:
    """The graph of a module, and what makes its parameters, bf16, from a key."""
    graph, state = nnx.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(state)

    def parameters(key: jax.Array) -> Any:
        return tree.unflatten(_normal(*(leaf.shape for leaf in leaves))(key))

    return graph, parameters


def _in_stream(make: Callable[[], Any], shape: tuple[int, ...]) -> tuple:
    """A module as a function of parameters, past and chunk, and its operands."""
    graph, parameters = _abstract(make)

    def run(weights: Any, past: Any, x: jax.Array) -> Any:
        stream = WanStream(past, jnp.asarray(False))
        return nnx.merge(graph, weights)(x, stream), stream.state()

    def operands(key: jax.Array) -> tuple:
        weights, (x,) = parameters(key), _normal(shape)(key)
        kept = jax.eval_shape(run, weights, None, x)[1]
        return weights, _normal(*(one.shape for one in kept))(key), x

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

        operands = _normal(before, (1, *shape), weight)
        yield Part("causal_conv", method, shape, other, operands, flops=flops)
    wide = (1, frames, height, width, 3 * channels)
    yield Part(
        "conv2d of the stack",
        "xla",
        shape,
        partial(conv2d, pad=_PAD),
        _normal(wide, (out, 3 * channels, 3, 3)),
        flops=flops,
    )
    nbytes = 2.0 * frames * height * width * channels
    yield Part(
        "stack", "xla", shape, stack, _normal(before, (1, *shape)), bytes=4 * nbytes
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
        lambda key: (parameters(key), *_normal((1, *shape))(key)),
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
                *_normal((1, *shape))(key),
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


def _milliseconds(call: Callable, operands: tuple) -> float:
    """Of a call, on the device where it has a profiler, by the clock elsewhere."""
    jax.block_until_ready(call(*operands))
    if jax.default_backend() == "gpu":
        return device_ms(call, *operands)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(call(*operands))
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def time_parts(
    config: WanVAEConfig, height: int, width: int
) -> Iterator[dict[str, Any]]:
    """A record per operation: `median_us`, and `tflops` or `tbps`."""
    for part in all_parts(config, height, width):
        record: dict[str, Any] = {
            "op": part.op,
            "implementation": part.implementation,
            "shape": list(part.shape),
        }
        try:
            operands = jax.jit(part.operands)(jax.random.key(0))
            seconds = 1e-3 * _milliseconds(jax.jit(part.function), operands)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            yield record | {"failure": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        record["median_us"] = 1e6 * seconds
        if part.flops:
            record["tflops"] = part.flops / seconds / 1e12
        if part.bytes:
            record["tbps"] = part.bytes / seconds / 1e12
        yield record
