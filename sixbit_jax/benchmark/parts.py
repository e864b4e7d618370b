"""Where a step's time goes: every operation of a block alone, at the model's shapes."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import quantize_qkv, quantized_attention
from pallas_kernels.block_stats.api import block_stats
from pallas_kernels.int8_matmul.api import int8_matmul
from pallas_kernels.norm_rope import Heads, Rotary, norm_rope, norm_rope_qkv
from pallas_kernels.nvfp4_expand.api import nvfp4_expand
from pallas_kernels.nvfp4_matmul.api import nvfp4_matmul
from pallas_kernels.quantize_int8.api import quantize_int8
from pallas_kernels.quantize_nvfp4.api import quantize_nvfp4
from sixbit_jax.benchmark.harness import ROTATION, device_ms
from sixbit_jax.benchmark.subject import Subject
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.embed import rotary_table
from sixbit_jax.nn.attention import attention
from sixbit_jax.nn.linear import matmul
from sixbit_jax.nn.rope import rotary_3d
from sixbit_jax.sampling import delta_cache

_COMPILE_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Part:
    """One operation of a block.

    Attributes:
      part: attention, linears, quantization, expansion, element-wise, cache.
      op: what it is.
      variant: the route, attention precision or cache format that needs it, or
        "skip" for skipped blocks.
      per_block: how often a block runs it, for one guidance branch.
      function: of the operands.
      operands: makes them from a key; runs on the device.
    """

    part: str
    op: str
    variant: str
    per_block: int
    function: Callable
    operands: Callable


def _normal(key, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, len(shapes))
    return tuple(
        jax.random.normal(k, shape, jnp.bfloat16)
        for k, shape in zip(keys, shapes, strict=True)
    )


def _weight(key, n: int, k: int) -> NVFP4Array:
    return NVFP4Array.quantize(
        jax.random.normal(key, (n, k)) / np.sqrt(k), rotation=128 if k % 128 == 0 else 0
    )


def _modulation(dim: int, num_text: int) -> dict[str, Any]:
    row = jnp.full((1, dim), 0.1, jnp.float32)
    return {
        "norm": "layer",
        "norm_weight": jnp.ones((dim,), jnp.bfloat16),
        "norm_bias": jnp.zeros((dim,), jnp.bfloat16),
        "shift": row,
        "scale": row,
        "text_shift": row,
        "text_scale": row,
        "text_rows": num_text,
    }


def _linear_parts(subject: Subject) -> Iterator[Part]:
    config, tokens = subject.config, subject.tokens
    dim = config.dim
    row = jnp.full((1, dim), 0.1, jnp.float32)
    gate: dict[str, Any] = {"gate": row}
    if subject.text_rows:
        gate |= {"text_gate": row, "text_rows": subject.text_rows}
    # Of Wan's cross-attention: the query, and the output with its residual.
    cross = int(isinstance(config, WanConfig))
    kinds = (
        ("qkv", dim, dim, 3 + cross, False),
        ("out", dim, dim, 1 + cross, True),
        ("up", subject.ffn_dim, dim, 1, False),
        ("down", dim, subject.ffn_dim, 1, True),
    )
    for name, n, k, times, gated in kinds:

        def stored(key, n=n, k=k):
            return _weight(key, n, k)

        def operands(key, n=n, k=k, gated=gated):
            x, residual = _normal(key, (1, tokens, k), (1, tokens, n if gated else 1))
            return x, _weight(key, n, k), residual if gated else None

        def int8_operands(key, make=operands):
            x, weight, residual = make(key)
            values, scales, _ = quantize_int8(x, rotation=weight.rotation)
            expanded = nvfp4_expand(
                weight.codes, weight.block_scales, weight.tensor_scale
            )
            return values, scales, *expanded, residual

        def nvfp4_operands(key, make=operands):
            x, weight, residual = make(key)
            codes, scales, tensor, _ = quantize_nvfp4(x, rotation=weight.rotation)
            return codes, scales, jnp.full((1,), tensor), weight, residual

        def bf16_operands(key, make=operands):
            x, weight, _ = make(key)
            return x, weight.dequantize(jnp.bfloat16)

        def int8(values, scales, weight, column, residual, n=n):
            epilogue: Any = {} if residual is None else gate | {"residual": residual}
            bias = jnp.zeros((n,), jnp.bfloat16)
            return int8_matmul(values, scales, weight, column, bias=bias, **epilogue)

        def nvfp4(codes, scales, tensor, weight, residual, n=n):
            epilogue: Any = {} if residual is None else gate | {"residual": residual}
            bias = jnp.zeros((n,), jnp.bfloat16)
            parts = (weight.codes, weight.block_scales, weight.tensor_scale)
            return nvfp4_matmul(codes, scales, tensor, *parts, bias=bias, **epilogue)

        def bf16(x, weight, n=n):
            return matmul(x, weight, jnp.zeros((n,), jnp.bfloat16))

        def expand(weight, to):
            return nvfp4_expand(
                weight.codes, weight.block_scales, weight.tensor_scale, to=to
            )

        yield Part("linears", name, "int8", times, int8, int8_operands)
        yield Part("linears", name, "nvfp4", times, nvfp4, nvfp4_operands)
        yield Part("linears", name, "bf16", times, bf16, bf16_operands)
        for to in ("int8", "bfloat16"):
            route = "int8" if to == "int8" else "w4a16"
            widen = partial(expand, to=to)
            yield Part("expansion", f"expand {name}", route, times, widen, stored)


def _row_parts(subject: Subject) -> Iterator[Part]:
    config, tokens = subject.config, subject.tokens
    dim, text = config.dim, subject.text_rows
    cross = int(isinstance(config, WanConfig))
    fronts = (
        ("norm, modulate", dim, 2 + cross, _modulation(dim, text)),
        ("as it is", dim, 1 + cross, {}),
        ("GELU", subject.ffn_dim, 1, {"activation": "gelu_tanh"}),
    )
    for name, width, times, front in fronts:
        rotation = 128 if width % 128 == 0 else 0
        options: Any = front | {"rotation": rotation}

        def operands(key, width=width):
            return _normal(key, (1, tokens, width))

        for route, op in (("int8", quantize_int8), ("nvfp4", quantize_nvfp4)):
            run = partial(op, **options)
            yield Part("quantization", f"quantize: {name}", route, times, run, operands)


def _attention_parts(subject: Subject) -> Iterator[Part]:
    config, tokens = subject.config, subject.tokens
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    shape = (1, tokens, heads, head_dim)

    def operands(key):
        return _normal(key, shape, shape, shape)

    for variant, kernels in (("bf16", True), ("cudnn bf16", False)):
        run = partial(attention, kernels=kernels)
        yield Part("attention", f"attention {variant}", variant, 1, run, operands)

    def quantized_operands(key):
        return (quantize_qkv(*operands(key)),)

    yield Part(
        "attention",
        "attention int8",
        "int8",
        1,
        quantized_attention,
        quantized_operands,
    )
    as_heads = _heads_of(subject)

    def sixteen_bits(q, k, v, implementation=None):
        del v
        return [norm_rope(as_heads(x), implementation=implementation) for x in (q, k)]

    def quantized(q, k, v):
        return norm_rope_qkv(as_heads(q), as_heads(k), v)

    for variant, name, run in (
        ("bf16", "q, k norm and rotary", sixteen_bits),
        ("int8", "q, k norm, rotary, INT8", quantized),
        (
            "cudnn bf16",
            "q, k norm, rotary: XLA",
            partial(sixteen_bits, implementation="reference"),
        ),
    ):
        yield Part("element-wise", name, variant, 1, run, operands)
    if not isinstance(config, WanConfig):
        return

    def cross_operands(key):
        words = (1, subject.words, heads, head_dim)
        return _normal(key, shape, words, words)

    # In 16 bits whatever precision the scores of self-attention have.
    for variant in ("bf16", "int8", "cudnn bf16"):
        run = partial(attention, kernels=variant != "cudnn bf16")
        yield Part("attention", "cross-attention", variant, 1, run, cross_operands)


def _heads_of(subject: Subject) -> Callable[[jax.Array], Heads]:
    """What is done with projected queries and keys before attention."""
    config = subject.config
    head_dim = config.attention_head_dim
    frames, height, width = config.token_grid(*subject.size)
    if isinstance(config, WanConfig):
        made = rotary_table(head_dim, frames, height, width)
        weight = jnp.ones((config.num_attention_heads, head_dim))

        def wan(x: jax.Array) -> Heads:
            square = jnp.square(x.astype(jnp.float32)).mean((-2, -1))
            factor = jax.lax.rsqrt(square + config.eps)
            rotary = Rotary(made.cos, made.sin)
            return Heads(x, row_factor=factor, weight=weight, rotary=rotary)

        return wan
    if not isinstance(config, CogVideoXConfig):
        # Blocks of two kinds.
        raise NotImplementedError(f"parts: expected CogVideoX or Wan: {subject.name}")
    table = None
    if config.use_rotary_positional_embeddings:
        table = rotary_3d(
            head_dim,
            frames=frames,
            height=height,
            width=width,
            base=config.sample_grid,
            grid="resize_crop" if config.patch_size_t is None else "slice",
        )
    ones, zeros = jnp.ones((head_dim,)), jnp.zeros((head_dim,))
    rotary = None if table is None else Rotary(table.cos, table.sin, subject.text_rows)
    return lambda x: Heads(x, norm="layer", weight=ones, bias=zeros, rotary=rotary)


def _cache_parts(subject: Subject) -> Iterator[Part]:
    shape = (1, subject.tokens, subject.config.dim)
    for stored in ("bf16", "int8", "nvfp4"):

        def operands(key, stored: Any = stored):
            x, y, delta = _normal(key, shape, shape, shape)
            encoded = delta_cache.encode(delta.astype(jnp.float32), stored)
            return x, y, encoded

        def measure(x, y, delta, stored: Any = stored):
            flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (x, y, delta))
            return block_stats(*flat, cache_format=stored)

        def reuse(x, y, delta):
            del y
            return (x.astype(jnp.float32) + delta_cache.decode(delta)).astype(x.dtype)

        yield Part("cache", f"statistics, {stored}", stored, 1, measure, operands)
        yield Part("cache", f"skipped block, {stored}", "skip", 1, reuse, operands)


def all_parts(subject: Subject) -> list[Part]:
    """Every operation of a block that takes time worth naming."""
    makers = (_attention_parts, _linear_parts, _row_parts, _cache_parts)
    return [part for make in makers for part in make(subject)]


def _milliseconds(call: Callable, sets: Any) -> float:
    """Of the device alone: many operations end before the host can start another."""
    jax.block_until_ready(call(sets))
    if jax.default_backend() == "gpu":
        return device_ms(call, sets)
    started = time.perf_counter()
    jax.block_until_ready(call(sets))
    return (time.perf_counter() - started) * 1e3


def compile_parts(
    subject: Subject, parts: Sequence[Part] | None = None
) -> Callable[[], Iterator[dict[str, Any]]]:
    """Compiles every operation.

    Returns:
      What times them and yields a record each: `op_ms`, and `step_ms` if every block
      of a step with both guidance branches runs it. Operands change from call to call,
      so that none is found in the cache.
    """
    key = jax.random.key(0)

    def compiled(part: Part) -> tuple[Part, Any, Any]:
        try:
            make = jax.jit(part.operands).lower(key).compile()
            shapes = _args(jax.eval_shape(part.operands, key))
            once = jax.jit(part.function)

            def walk(sets):
                return [once(*one) for one in sets]

            return part, make, jax.jit(walk).lower([shapes] * ROTATION).compile()
        except (ValueError, NotImplementedError, RuntimeError) as error:
            return part, None, error

    with ThreadPoolExecutor(_COMPILE_THREADS) as pool:
        ready = list(pool.map(compiled, all_parts(subject) if parts is None else parts))

    def run() -> Iterator[dict[str, Any]]:
        for part, make, call in ready:
            record: dict[str, Any] = {
                "model": subject.name,
                "tokens": subject.tokens,
                "part": part.part,
                "op": part.op,
                "variant": part.variant,
                "per_block": part.per_block,
            }
            try:
                if make is None:
                    raise call
                sets = [_args(make(key)) for key in jax.random.split(key, ROTATION)]
                op_ms = _milliseconds(call, sets) / ROTATION
            except (ValueError, NotImplementedError, RuntimeError) as error:
                failure = f"{type(error).__name__}: {str(error)[:300]}"
                yield record | {"failure": failure}
                continue
            calls = 2 * part.per_block * subject.config.num_layers
            yield record | {"op_ms": op_ms, "step_ms": calls * op_ms}

    return run


def _args(operands: Any) -> tuple:
    return operands if type(operands) is tuple else (operands,)


def breakdown(
    program: dict[str, Any], parts: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Milliseconds of a step by part, from the parts' own times.

    Args:
      program: a sampling record.
      parts: records of `compile_parts`.

    Returns:
      `part_ms` by part; "rest" is what the parts do not explain. Empty if a part is
      missing, or the program mixes routes or has sparse attention.
    """
    fraction, routes = program["skip_fraction"], program["routes"]
    plain = program.get("weights") == "bf16"
    if routes == "mixed" or program.get("density", 1.0) < 1:
        return {}
    wanted = {
        "attention": {program["attention"]},
        "linears": {routes},
        "quantization": {routes} - {"bf16"},
        "expansion": {"int8": {"int8"}, "nvfp4": set()}.get(
            routes, set() if plain else {"w4a16"}
        ),
        "element-wise": {program["attention"]},
        "cache": {program["cache_format"], "skip"} - {"none"},
    }
    found = dict.fromkeys(wanted, 0.0)
    for record in parts:
        if record["variant"] not in wanted[record["part"]] or "step_ms" not in record:
            continue
        share = 1 - fraction
        if record["variant"] == "skip":
            if not record["op"].endswith(program["cache_format"]):
                continue
            share = fraction
        found[record["part"]] += share * record["step_ms"]
    if not found["attention"] or not found["linears"]:
        return {}
    return found | {"rest": program["step_ms"] - sum(found.values())}
