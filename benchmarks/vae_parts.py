"""Where a decoder's time goes: its operations alone, at the sizes of one chunk."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sixbit_jax.benchmark.harness import REPEATS, device_ms
from sixbit_jax.vae.causal_conv import METHODS, frames_conv
from sixbit_jax.vae.cogvideox import Upsample
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.group_norm import GroupNorm, SpatialNorm, group_statistics

_LATENT_FRAMES = 2


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


def plain_group_norm(x: jax.Array, groups: int) -> jax.Array:
    """Mean, then variance, then SiLU, as one writes it first: the peer."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
    mean = grouped.mean((1, 2, 3, 5), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 3, 5), keepdims=True)
    y = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
    return jax.nn.silu(y).astype(x.dtype)


def all_parts(config: CogVideoXVAEConfig, height: int, width: int) -> Iterator[Part]:
    """Convolutions, norms and upsampling of every level of one chunk."""
    from flax import nnx

    frames = _LATENT_FRAMES
    widths = config.block_out_channels[::-1]
    groups = config.norm_num_groups
    latents = (1, _LATENT_FRAMES, height, width, config.latent_channels)
    for level, channels in enumerate(widths):
        shape = (frames, height, width, channels)
        pixels = frames * height * width
        past = (1, frames + 2, height, width, channels)
        weight = (channels, channels, 3, 3, 3)
        for method in METHODS:
            yield Part(
                "causal_conv",
                method,
                shape,
                partial(frames_conv, pad=((1, 1), (1, 1)), method=method),
                _normal(past, weight),
                flops=54.0 * pixels * channels**2,
            )
        nbytes = 2.0 * pixels * channels
        graph, state = nnx.split(
            SpatialNorm(channels, latents[-1], groups, eps=1e-6, rngs=nnx.Rngs(0))
        )
        plain = nnx.split(GroupNorm(channels, groups, eps=1e-6))
        activation = _normal((1, *shape))
        for name, kernels in (("one pass", False), ("kernels", True)):
            yield Part(
                "group_statistics",
                name,
                shape,
                partial(group_statistics, groups=groups, eps=1e-6, kernels=kernels),
                activation,
                bytes=nbytes,
            )
        yield Part(
            "group_norm_silu",
            "one pass",
            shape,
            lambda x, plain=plain: nnx.merge(*plain)(x),
            activation,
            bytes=3 * nbytes,
        )
        yield Part(
            "group_norm_silu",
            "plain",
            shape,
            lambda x: plain_group_norm(x, groups),
            activation,
            bytes=3 * nbytes,
        )
        yield Part(
            "spatial_norm_silu",
            "one pass",
            shape,
            lambda x, z, graph=graph, state=state: nnx.merge(graph, state)(x, z),
            _normal((1, *shape), latents),
            bytes=3 * nbytes,
        )
        if level == len(widths) - 1:
            break
        time = level < config.time_levels
        upsample = nnx.split(Upsample(channels, time=time, rngs=nnx.Rngs(0)))
        yield Part(
            "upsample",
            "xla",
            shape,
            lambda x, upsample=upsample: nnx.merge(*upsample)(x),
            activation,
            flops=18.0 * 4 * pixels * channels**2,
        )
        frames *= 2 if time else 1
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
    config: CogVideoXVAEConfig, height: int, width: int
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
