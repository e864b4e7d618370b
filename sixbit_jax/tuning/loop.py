"""The tuning loop: AdamW with a learning rate per group, cosine to zero, any method.

One compiled call runs several iterations over a block of examples that the host has
gathered; the next block is gathered while the device works. Everything that an
iteration depends on is in the state or follows from (seed, iteration), so that a run
that was killed continues to the same result.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sixbit_jax.meshes import devices_for
from sixbit_jax.tuning.forward import Outputs, forward
from sixbit_jax.tuning.method import Groups, Method, Start
from sixbit_jax.tuning.trajectories import Batch, Trajectories


@dataclass(frozen=True)
class TuneOptions:
    """Numbers of a run.

    Attributes:
      iterations: after which the learning rates are zero.
      batch: examples per iteration.
      weight_decay, betas: numbers of AdamW.
      clip_norm: limit of the gradient's L2 norm in each group; None for none.
      seed: the seed of the order of the examples.
      dtype: compute dtype of the network; trainable values are float32.
      remat: compute blocks again in the backward pass.
      iterations_per_call: of one compiled call; checkpoints lie between calls.
    """

    iterations: int = 2000
    batch: int = 4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    seed: int = 0
    dtype: str = "float32"
    remat: bool = True
    iterations_per_call: int = 20

    def __post_init__(self) -> None:
        problems = []
        for name in ("iterations", "batch", "iterations_per_call"):
            if getattr(self, name) < 1:
                problems.append(
                    f"{name}: expected at least 1, found {getattr(self, name)}"
                )
        if self.dtype not in ("float32", "bfloat16"):
            problems.append(
                f"dtype: expected float32 or bfloat16, found {self.dtype!r}"
            )
        if problems:
            raise ValueError("tuning options:\n  " + "\n  ".join(problems))


class TuneState(NamedTuple):
    """Everything that an iteration changes; a pytree of arrays.

    Attributes:
      trainable: values by group.
      optimizer: moments.
      extra: state of the method's loss.
      learning_rates: before the cosine, by group; 0 keeps a group as it is.
      iteration: how many are done.
    """

    trainable: Groups
    optimizer: optax.OptState
    extra: Any
    learning_rates: dict[str, Float[Array, ""]]
    iteration: Int[Array, ""]


def _optimizer(options: TuneOptions) -> optax.GradientTransformation:
    """AdamW without its learning rate, which depends on the group."""
    return optax.chain(
        optax.scale_by_adam(*options.betas),
        optax.add_decayed_weights(options.weight_decay),
    )


class Tuner:
    """A compiled tuning program; runs with other numbers of one structure share it.

    Args:
      model: the network; gives the structure, and the teacher where a method needs
        its features.
      method: what is tuned, and by which loss.
      options: numbers of the run.
      devices: batches are split over these; None takes as many as divide the batch.

    Raises:
      ValueError: the batch does not divide among the devices.
    """

    def __init__(
        self,
        model: nnx.Module,
        method: Method,
        options: TuneOptions,
        *,
        devices: list[Any] | None = None,
    ):
        devices = devices_for(options.batch) if devices is None else devices
        if options.batch % len(devices):
            raise ValueError(
                f"batch: expected a multiple of the {len(devices)} devices, found "
                f"{options.batch}"
            )
        self.options, self.method = options, method
        self.graph, self._teacher = nnx.split(model)
        mesh = Mesh(np.asarray(devices), ("data",))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._examples = NamedSharding(mesh, PartitionSpec(None, "data"))
        self._optimizer = _optimizer(options)
        self._run = jax.jit(
            self._iterations,
            donate_argnums=0,
            in_shardings=(
                self._replicated,
                self._replicated,
                self._replicated,
                self._examples,
            ),
            out_shardings=(self._replicated, self._replicated),
            # Runs on a GPU otherwise differ from one another, and so would a resumed
            # one from one that was not cut.
            compiler_options={"xla_gpu_deterministic_ops": True},
        )

    def init(self, start: Start, learning_rates: dict[str, float]) -> TuneState:
        """The state before the first iteration.

        Args:
          start: what the method starts from.
          learning_rates: the learning rates of each group, before the cosine.

        Raises:
          ValueError: other groups than those of `start`.
        """
        if set(learning_rates) != set(start.trainable):
            raise ValueError(
                f"learning rates: expected the groups {sorted(start.trainable)}, "
                f"found {sorted(learning_rates)}"
            )
        # Copies: the program is given the state's buffers to write into.
        trainable = jax.tree.map(
            lambda x: jnp.array(x, jnp.float32, copy=True), start.trainable
        )
        extra = jax.tree.map(lambda x: jnp.array(x, copy=True), start.extra)
        rates = {k: jnp.float32(v) for k, v in sorted(learning_rates.items())}
        optimizer = self._optimizer.init(trainable)
        return TuneState(trainable, optimizer, extra, rates, jnp.int32(0))

    def blocks(self, data: Trajectories, first: int) -> Iterator[Batch]:
        """Blocks of examples [iterations, batch, ...] from an iteration on.

        The order is that of shuffled passes over all examples, by seed and iteration
        alone.
        """
        options = self.options
        while first < options.iterations:
            count = min(options.iterations_per_call, options.iterations - first)
            numbers = np.arange(first * options.batch, (first + count) * options.batch)
            chosen = shuffled(numbers, len(data), options.seed)
            yield data.batch(chosen.reshape(count, options.batch))
            first += count

    def run(
        self,
        state: TuneState,
        frozen: Any,
        data: Trajectories,
        *,
        after_call: Callable[[TuneState, dict[str, np.ndarray]], bool | None]
        | None = None,
    ) -> tuple[TuneState, dict[str, np.ndarray]]:
        """Tunes from the state's iteration to the last one.

        Args:
          state: from `init` or a checkpoint; its buffers are used up.
          frozen: the frozen values of the method's start.
          data: the teacher's trajectories.
          after_call: given the state and the call's metrics [iterations]; returning
            True ends the run there.

        Returns:
          The last state, and the metrics of all iterations run here.

        Raises:
          FloatingPointError: a loss is not finite.
        """
        frozen = jax.device_put(frozen, self._replicated)
        teacher = self._teacher if self.method.needs_features else ()
        teacher = jax.device_put(teacher, self._replicated)
        state = jax.device_put(state, self._replicated)
        history: list[dict[str, np.ndarray]] = []
        pending = None
        done = int(state.iteration)
        for block in self.blocks(data, done):
            block = jax.device_put(block, self._examples)
            # The device works on this block while the host waits for the one before.
            # A caller that looks at the state must have that of its own metrics.
            if pending is not None:
                history.append(_on_host(pending, done))
                if after_call is not None and after_call(state, history[-1]):
                    return state, _joined(history)
            state, pending = self._run(state, frozen, teacher, block)
            done += len(block.step)
        if pending is not None:
            history.append(_on_host(pending, done))
            if after_call is not None:
                after_call(state, history[-1])
        return state, _joined(history)

    def _iterations(self, state, frozen, teacher, blocks):
        return jax.lax.scan(
            lambda s, batch: self._iteration(s, frozen, teacher, batch), state, blocks
        )

    def _iteration(
        self, state: TuneState, frozen: Any, teacher: Any, batch: Batch
    ) -> tuple[TuneState, dict[str, Array]]:
        options, method = self.options, self.method
        batch = Batch(*map(jnp.asarray, batch))
        run = functools.partial(
            forward,
            self.graph,
            latents=batch.latents,  # pyrefly: ignore[bad-argument-type]
            text=batch.text,  # pyrefly: ignore[bad-argument-type]
            timestep=batch.timestep,  # pyrefly: ignore[bad-argument-type]
            dtype=jnp.dtype(options.dtype),
            features=method.needs_features,
        )
        truth = Outputs(jnp.asarray(batch.prediction), None)
        if method.needs_features:
            truth = run(params=teacher, remat=False)
        truth = jax.lax.stop_gradient(truth)

        def loss(trainable: Groups) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            params = method.student(trainable, frozen)
            found = run(params=params, remat=options.remat)
            result = method.loss(state.extra, found, truth, batch)
            return result.loss, (result.extra, result.metrics)

        (value, (extra, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.trainable
        )
        norms = {name: optax.tree.norm(part) for name, part in gradient.items()}
        if options.clip_norm is not None:
            shares = {
                name: options.clip_norm / jnp.maximum(norm, options.clip_norm)
                for name, norm in norms.items()
            }
            gradient = {
                name: jax.tree.map(lambda g, share=shares[name]: g * share, part)
                for name, part in gradient.items()
            }
        found: Any = self._optimizer.update(gradient, state.optimizer, state.trainable)
        direction, optimizer = found
        share = optax.cosine_decay_schedule(1.0, options.iterations)(state.iteration)
        trainable = {
            name: jax.tree.map(
                lambda p, d, rate=share * state.learning_rates[name]: p - rate * d,
                part,
                direction[name],
            )
            for name, part in state.trainable.items()
        }
        reported = {"loss": value, **metrics}
        reported |= {f"gradient_{name}": norm for name, norm in norms.items()}
        new = TuneState(
            trainable, optimizer, extra, state.learning_rates, state.iteration + 1
        )
        return new, reported


def shuffled(
    numbers: Int[np.ndarray, "n"], count: int, seed: int
) -> Int[np.ndarray, "n"]:
    """Which example is drawn at each position of an endless series of passes."""
    rounds = numbers // count
    chosen = np.empty_like(numbers)
    for number in np.unique(rounds):
        order = np.random.default_rng([seed, int(number)]).permutation(count)
        here = rounds == number
        chosen[here] = order[numbers[here] % count]
    return chosen


def _on_host(metrics: dict[str, Array], done: int) -> dict[str, np.ndarray]:
    found = {name: np.asarray(values) for name, values in metrics.items()}
    if not np.isfinite(found["loss"]).all():
        first = int(np.flatnonzero(~np.isfinite(found["loss"]))[0])
        number = done - len(found["loss"]) + first
        raise FloatingPointError(
            f"tuning: the loss is not finite at iteration {number}; expected smaller "
            "learning rates or float32"
        )
    return found


def _joined(history: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not history:
        return {}
    return {k: np.concatenate([h[k] for h in history]) for k in history[0]}


__all__ = ["TuneOptions", "TuneState", "Tuner", "shuffled"]
