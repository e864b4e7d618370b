"""The training loop of the small pipeline's parts: AdamW, an average, a time limit."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

MAX_BYTES = 15 * 2**20


@dataclass(frozen=True)
class Settings:
    """Numbers of a run.

    Attributes:
      learning_rate: after warm-up; a half cosine over the run's time takes it to
        `final_fraction` of it.
      warmup: steps; every call warms up, because Adam's moments start again.
      weight_decay: decoupled, on matrices only.
      betas: of Adam's two moments.
      clip_norm: limit of the gradient's global norm.
      average_decay: of the moving average of the weights.
    """

    learning_rate: float = 1e-3
    final_fraction: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    average_decay: float = 0.998


class State(NamedTuple):
    """What a step changes; float32 but for the counter."""

    params: Any
    optimizer: Any
    average: Any
    step: Int[Array, ""]


# (params, data, key) -> (loss, named scalars)
Loss = Callable[[Any, Any, Key[Array, ""]], tuple[Array, dict[str, Array]]]


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(*settings.betas),
        optax.add_decayed_weights(
            settings.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


def init(params: Any, settings: Settings) -> State:
    """The state that a run starts from."""
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    average = jax.tree.map(jnp.copy, params)
    return State(
        params, _optimizer(settings).init(params), average, jnp.zeros((), jnp.int32)
    )


def make_steps(
    loss: Loss, settings: Settings, *, count: int, seed: int, mesh: Mesh
) -> Any:
    """A jitted function of `count` steps that donates its state.

    Every device of the mesh draws its own batch of its own part of the data; gradients
    are averaged.

    Args:
      loss: of one device's batch.
      settings: the numbers.
      count: steps of one call.
      seed: of the batches.
      mesh: with one axis, "data".

    Returns:
      `(state, data, progress) -> (state, means)`; `progress` is [2], the parts of the
      run's time that had passed at the begin and will have passed at the end. State
      and progress are on all devices (`everywhere`), data is split (`divided`).
    """
    optimizer = _optimizer(settings)

    def one(state: State, data: Any, progress: Array) -> tuple[State, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        found, gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, data, key
        )
        (value, named), gradient = jax.lax.pmean((found, gradient), "data")
        direction, moments = optimizer.update(gradient, state.optimizer, state.params)
        cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))
        rate = settings.final_fraction + (1 - settings.final_fraction) * cosine
        warm = jnp.minimum((state.step + 1) / settings.warmup, 1.0)
        rate = settings.learning_rate * warm * rate
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        # The average forgets the first, bad weights faster.
        decay = jnp.minimum(
            settings.average_decay, (1 + state.step) / (10 + state.step)
        )
        average = optax.incremental_update(params, state.average, 1 - decay)
        named = {**named, "loss": value, "gradient_norm": optax.global_norm(gradient)}
        return State(params, moments, average, state.step + 1), named

    def steps(state: State, data: Any, progress: Float[Array, "2"]) -> Any:
        ramp = progress[0] + (progress[1] - progress[0]) * jnp.arange(count) / count
        state, named = jax.lax.scan(lambda s, p: one(s, data, p), state, ramp)
        return state, jax.tree.map(jnp.mean, named)

    split = jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec(),
        # The averaged gradients are the same everywhere, which it cannot see.
        check_vma=False,
    )
    return jax.jit(split, donate_argnums=0)


def all_devices() -> Mesh:
    """All devices of this machine, each with a part of the data."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """Rows split among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


@dataclass
class Run:
    """A run in progress: its state, its clock and its records."""

    state: State
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def run_for(
    run: Run,
    steps: Any,
    data: Any,
    *,
    seconds: float,
    count: int,
    span: tuple[float, float] = (0.0, 1.0),
    most: int = 10**9,
    labels: Mapping[str, Any] | None = None,
    every: float = 5.0,
    save: Callable[[Any], object] = lambda average: None,
    save_every: float = 60.0,
    mesh: Mesh,
) -> int:
    """Calls `steps` until the time is over; compilation counts.

    Args:
      run: changed in place.
      steps: from `make_steps`.
      data: what the loss reads.
      seconds: of this call.
      count: steps of one call of `steps`.
      span: where on the learning rate's half cosine this begins and ends.
      most: stop after so many steps in any case.
      labels: put into every record.
      every: seconds between records.
      save: called with the average of the weights now and then.
      save_every: seconds between such calls.
      mesh: of `steps`.

    Returns:
      The number of steps.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    start = last = saved = time.perf_counter()
    run.state = jax.device_put(run.state, everywhere(mesh))
    begun = compiled = None
    done, each = 0, 0.0
    pending: list[Any] = []
    while done < most:
        now = time.perf_counter() - start
        if now + each > seconds and done:
            break
        if begun is None and done:
            begun = now
        # The cosine runs over what is left after compilation.
        first = 0.0 if begun is None else (now - begun) / max(seconds - begun, 1e-3)
        width = each / max(seconds - (begun or 0.0), 1e-3)
        places = [span[0] + (span[1] - span[0]) * p for p in (first, first + width)]
        progress = jax.device_put(np.asarray(places, np.float32), everywhere(mesh))
        run.state, named = steps(run.state, data, progress)
        pending.append(named)
        done += count
        jax.block_until_ready(run.state.step)
        took = time.perf_counter() - start - now
        if compiled is None:
            compiled = took
        else:
            each = took if not each else 0.7 * each + 0.3 * took
        if time.perf_counter() - last > every or done == count:
            last = time.perf_counter()
            _record(run, pending, done, last - start, each / count, labels or {})
            pending = []
        if time.perf_counter() - saved > save_every:
            saved = time.perf_counter()
            save(run.state.average)
    run.seconds += time.perf_counter() - start
    if pending:
        elapsed = time.perf_counter() - start
        _record(run, pending, done, elapsed, each / count, labels or {})
    summary = {"kind": "stage", **(labels or {}), "steps": done}
    summary["seconds"] = round(time.perf_counter() - start, 1)
    summary["compile_seconds"] = round(compiled or 0.0, 1)
    summary["ms_per_step"] = round(1e3 * each / count, 2)
    run.records.append(summary)
    print(json.dumps(summary), flush=True)
    return done


def _record(
    run: Run,
    pending: list[Any],
    done: int,
    elapsed: float,
    each: float,
    labels: Mapping[str, Any],
) -> None:
    named = {
        name: float(np.mean([float(p[name]) for p in pending])) for name in pending[0]
    }
    record = {"kind": "loss", **labels, "step": int(run.state.step)}
    record |= {"seconds": round(elapsed, 1), "ms_per_step": round(1e3 * each, 2)}
    record |= {name: float(f"{value:.5g}") for name, value in named.items()}
    run.records.append(record)
    print(json.dumps(record), flush=True)
    if not np.isfinite(named["loss"]):
        raise FloatingPointError(f"the loss is not finite at step {record['step']}")


def save_weights(folder: Path, params: Any, *, name: str = "weights") -> None:
    """Writes parameters one after the other as bfloat16, in files of limited size."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = [np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(params)]
    flat = np.concatenate(leaves).astype(ml_dtypes.bfloat16).view(np.uint16)
    each = (MAX_BYTES - 1024) // 2
    for number, start in enumerate(range(0, flat.size, each)):
        np.save(folder / f"{name}-{number}.npy", flat[start : start + each])


def load_weights(folder: Path, like: Any, *, name: str = "weights") -> Any:
    """Parameters that `save_weights` wrote, as float32.

    Raises:
      ValueError: the files hold another number of parameters.
    """
    leaves, structure = jax.tree.flatten(like)
    count = len(list(folder.glob(f"{name}-*.npy")))
    parts = [np.load(folder / f"{name}-{number}.npy") for number in range(count)]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
    expected = sum(leaf.size for leaf in leaves)
    if flat.size != expected:
        raise ValueError(
            f"{folder}: expected the {expected} parameters of {name}, found "
            f"{flat.size} in {count} files"
        )
    values = flat.view(ml_dtypes.bfloat16).astype(np.float32)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    arrays = [
        jnp.asarray(part.reshape(leaf.shape))
        for part, leaf in zip(np.split(values, ends), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def save_small(file: Path, params: Any) -> None:
    """Writes parameters in 8 bits, half of what `save_weights` needs, to go on from.

    Rows of matrices have a scale each; vectors keep 16 bits. Its error, half a percent
    of the largest value of a row, is gone after some steps of training.
    """
    arrays: dict[str, Any] = {}
    for number, leaf in enumerate(jax.tree.leaves(params)):
        value = np.asarray(leaf, np.float32)
        if value.ndim < 2:
            arrays[f"v{number}"] = value.astype(np.float16)
            continue
        scale = np.abs(value).max(-1, keepdims=True) / 127
        arrays[f"s{number}"] = scale.astype(np.float16)
        arrays[f"q{number}"] = np.rint(value / np.maximum(scale, 1e-12)).astype(np.int8)
    np.savez_compressed(file, **arrays)


def load_small(file: Path, like: Any) -> Any:
    """Parameters that `save_small` wrote, as float32."""
    leaves, structure = jax.tree.flatten(like)
    found = np.load(file)
    values = []
    for number, leaf in enumerate(leaves):
        if f"v{number}" in found:
            value = found[f"v{number}"].astype(np.float32)
        else:
            scale = found[f"s{number}"].astype(np.float32)
            value = found[f"q{number}"].astype(np.float32) * scale
        if value.shape != leaf.shape:
            raise ValueError(
                f"{file}: expected {leaf.shape} for parameter {number}, found "
                f"{value.shape}"
            )
        values.append(jnp.asarray(value))
    return jax.tree.unflatten(structure, values)
