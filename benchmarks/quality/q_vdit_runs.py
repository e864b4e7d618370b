"""The programs behind the Q-VDiT table: trajectories, tuning, sampling."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sixbit_jax
from benchmarks.quality.metrics import Measured, measure, summary
from benchmarks.quality.q_vdit_rows import (
    GROUPS,
    SCOPES,
    SWEEP,
    VARIANTS,
    Configuration,
    Settings,
)
from benchmarks.quality.runner import Clock
from benchmarks.quality.runs import Samples, Task, make_task
from sixbit_jax.demo import vocabulary
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.demo.model import LATENT_SHAPE, demo_scheduler
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.methods.q_vdit.factors import frame_factors
from sixbit_jax.methods.q_vdit.method import (
    QVDiTOptions,
    activation_levels,
    average_bits,
    q_vdit_method,
    q_vdit_start,
)
from sixbit_jax.methods.q_vdit.pack import fixed_params, stored_bytes
from sixbit_jax.sampling.api import block_grid
from sixbit_jax.sampling.options import Execution, Prompt
from sixbit_jax.tuning.loop import TuneOptions, Tuner
from sixbit_jax.tuning.method import Start, with_activation_bits
from sixbit_jax.tuning.trajectories import Trajectories, record_trajectories


class Tuned(NamedTuple):
    """A tuned student: values by group, and what they belong to."""

    trainable: Any
    frozen: Any
    options: QVDiTOptions


class Workbench:
    """A model, its trajectories, and the compiled programs over them."""

    def __init__(self, model: Any, settings: Settings, clock: Clock):
        self.model, self.settings, self.clock = model, settings, clock
        self.shape = (settings.frames, *LATENT_SHAPE[1:])
        self.dtype = jnp.dtype(settings.dtype)
        self.null = encode_captions([""])[0]
        self.text_rows = self.null.shape[0]
        self.frames = model.config.token_grid(self.shape[0], *self.shape[2:])[0]
        evaluated = evaluation_attributes(settings.captions)
        self.task: Task = make_task(evaluated, [1], self.shape)
        self.measured: dict[str, Measured] = {}
        self._starts: dict[tuple[int, str, bool], Start] = {}
        self._factors: dict[str, Any] = {}
        self.rates: dict[str, float] | None = None

        clock.log("trajectories")
        self.data, self.held_out = self._record(evaluated)
        clock.log(f"{len(self.data)} examples to tune on; reference")
        self.reference = self._sample(model)
        clock.log("reference done")
        options = TuneOptions(
            iterations=settings.iterations,
            batch=settings.batch,
            dtype=settings.dtype,
            iterations_per_call=settings.iterations_per_call,
        )
        # Small enough to be kept whole; recomputing costs a third of the time.
        options = replace(options, remat=False)
        method = q_vdit_method(text_rows=self.text_rows)
        self.tuner = Tuner(model, method, options, devices=jax.devices()[:1])

    def _record(self, evaluated: np.ndarray) -> tuple[Trajectories, Trajectories]:
        settings = self.settings
        held_out = max(settings.tune_captions // 8, 1)
        taken = {tuple(row) for row in evaluated.tolist()}
        free = [r for r in vocabulary.training_combinations() if tuple(r) not in taken]
        count = settings.tune_captions + held_out
        order = np.random.default_rng(7).permutation(len(free))[:count]
        captions = [vocabulary.caption_of(free[i]) for i in order]
        found = record_trajectories(
            self.model,
            demo_scheduler(),
            encode_captions(captions),
            None if settings.guidance == 1.0 else self.null,
            latent_shape=self.shape,
            num_steps=settings.steps,
            guidance_scale=settings.guidance,
            seed=5,
            batch=count,
            dtype=self.dtype,
        )

        def part(rows: slice) -> Trajectories:
            return Trajectories(
                found.latents[:, rows],
                found.predictions[:, :, rows],
                found.timesteps,
                found.text[:, rows],
            )

        return part(slice(held_out, None)), part(slice(held_out))

    def _sample(self, model: Any) -> Samples:
        settings = self.settings
        text = encode_captions(self.task.captions)
        guided = settings.guidance != 1.0
        result = sixbit_jax.sample(
            model,
            demo_scheduler(),
            Prompt(
                text,
                np.broadcast_to(self.null, text.shape) if guided else None,
                as_given=True,
            ),
            latent_shape=self.shape,
            num_steps=settings.steps,
            guidance=settings.guidance,
            noise=self.task.noise,
            execution=Execution(dtype=self.dtype),
        )
        host = jax.tree.map(np.asarray, result)
        # One trace for the whole batch: nothing is decided here.
        trace = jax.tree.map(lambda x: np.stack([x] * len(text)), host.trace)
        return Samples(host.latents, trace)

    def options(self, bits: int, scope: str, activation_bits: int = 6) -> QVDiTOptions:
        """How the network is quantized."""
        return QVDiTOptions(
            weight_bits=bits,
            activation_bits=activation_bits,
            scope=SCOPES[scope],
            inner_rank=self.settings.inner_rank,
        )

    def start(self, bits: int, scope: str, searched: bool, with_m: bool) -> Start:
        """Where a variant begins; M from 6-bit activations."""
        options = self.options(bits, scope)
        key = (bits, scope, searched)
        if key not in self._starts:
            self._starts[key] = q_vdit_start(
                self.model,
                replace(options, searched_range=searched),
                frames=self.frames,
                text_rows=self.text_rows,
            )
        start = self._starts[key]
        if not with_m:
            return start
        if scope not in self._factors:
            numbers = np.linspace(0, len(self.data) - 1, 16 * 8).round().astype(int)
            self._factors[scope] = frame_factors(
                self.model,
                [self.data.batch(part) for part in np.split(numbers, 8)],
                options,
                frames=self.frames,
                text_rows=self.text_rows,
                dtype=self.dtype,
            )
        trainable = {**start.trainable, "factors": self._factors[scope]}
        return start._replace(trainable=trainable)

    def _run(
        self, start: Start, rates: dict[str, float], tmd: float, iterations: int
    ) -> tuple[Any, dict[str, np.ndarray]]:
        extra = {"tmd_weight": jnp.float32(tmd)}
        state = self.tuner.init(start._replace(extra=extra), rates)
        return self.tuner.run(
            state,
            start.frozen,
            self.data,
            after_call=lambda s, _: int(s.iteration) >= iterations,
        )

    def validate(self, trainable: Any, frozen: Any) -> dict[str, float]:
        """Mean losses over held-out examples: iterations with learning rates of 0."""
        start = Start(trainable, frozen, {"tmd_weight": jnp.float32(0)})
        state = self.tuner.init(start, dict.fromkeys(GROUPS, 0.0))
        batch, per_call = self.settings.batch, self.settings.iterations_per_call
        calls = min(-(-len(self.held_out) // (batch * per_call)), 4)
        _, history = self.tuner.run(
            state,
            frozen,
            self.held_out,
            after_call=lambda s, _: int(s.iteration) >= calls * per_call,
        )
        return {name: float(history[name].mean()) for name in ("mse", "relations")}

    def learning_rates(
        self, known: dict[str, float] | None
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Rates by group: given, known from before, or searched; kept for `tune`.

        Returns:
          The rates, and a record of every attempt.
        """
        tried: list[dict[str, Any]] = []
        if self.settings.rates is not None:
            known = dict(zip(GROUPS, self.settings.rates, strict=True))
        if known is None:
            known, tried = self._search()
        self.rates = known
        return dict(known), tried

    def _search(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The rates of least held-out error at 3 bits, one group after the other."""
        start = self.start(3, "all_linears", True, True)
        rates = dict.fromkeys(GROUPS, 0.0)
        tried: list[dict[str, Any]] = []
        for group, values in SWEEP.items():
            found = {}
            for value in values:
                attempt = {**rates, group: value}
                try:
                    state, _ = self._run(
                        start, attempt, 0.0, self.settings.sweep_iterations
                    )
                except FloatingPointError:
                    losses = {"mse": float("inf"), "relations": float("inf")}
                else:
                    losses = self.validate(state.trainable, start.frozen)
                found[value] = losses["mse"]
                tried.append({"kind": "sweep", "learning_rates": attempt, **losses})
                self.clock.log(f"{group} {value:g}: held-out mse {losses['mse']:.6f}")
            rates[group] = min(found, key=found.__getitem__)
        return rates, tried

    def tune(
        self,
        bits: int,
        scope: str,
        variant: str,
    ) -> tuple[Tuned, dict[str, Any]]:
        """Tunes one variant; those that train nothing are returned as they start."""
        if self.rates is None:
            raise ValueError("expected learning_rates() before tune()")
        chosen = VARIANTS[variant]
        start = self.start(bits, scope, chosen.searched, chosen.with_m)
        options = self.options(bits, scope)
        rates = dict.fromkeys(GROUPS, 0.0)
        trainable, curve, seconds = start.trainable, [], 0.0
        if chosen.tuned:
            rates |= {g: self.rates[g] for g in chosen.tuned}
            began = time.monotonic()
            state, history = self._run(
                start, rates, chosen.tmd, self.settings.iterations
            )
            seconds = time.monotonic() - began
            trainable = state.trainable
            points = np.array_split(history["loss"], 30)
            curve = [float(part.mean()) for part in points if part.size]
        losses = self.validate(trainable, start.frozen)
        self.clock.log(
            f"w{bits} {scope} {variant}: held-out mse {losses['mse']:.6f}, relations "
            f"{losses['relations']:.3g}, {seconds:.1f} s"
        )
        record = {
            "description": chosen.description,
            "learning_rates": rates,
            "tmd_weight": chosen.tmd,
            "iterations": self.settings.iterations if chosen.tuned else 0,
            "tune_seconds": round(seconds, 2),
            "held_out_mse": losses["mse"],
            "held_out_relations": losses["relations"],
            "curve": curve,
        }
        return Tuned(trainable, start.frozen, options), record

    @staticmethod
    def row_name(configuration: Configuration, scope: str, variant: str) -> str:
        """E.g. "w3a6/attention/tqe"."""
        bits = f"w{configuration.weight_bits}a{configuration.activation_bits}"
        return f"{bits}/{scope}/{variant}"

    def evaluate(
        self,
        tuned: Tuned,
        record: dict[str, Any],
        configuration: Configuration,
        scope: str,
        variant: str,
    ) -> dict[str, Any]:
        """Samples the captions with quantized weights and activations."""
        name = self.row_name(configuration, scope, variant)
        options = replace(tuned.options, activation_bits=configuration.activation_bits)
        params = fixed_params(tuned.trainable, tuned.frozen, text_rows=self.text_rows)
        params = with_activation_bits(params, activation_levels(self.model, options))
        graph, _ = nnx.split(self.model)
        samples = self._sample(nnx.merge(graph, params))
        found = measure(
            samples, self.reference.latents, self.task, block_grid(self.model)
        )
        self.measured[name] = found
        weights, activations = average_bits(self.model, options)
        estimator = "estimator" in VARIANTS[variant].tuned
        size = stored_bytes(self.model, options, estimator=estimator)
        count = sum(x.size for x in jax.tree.leaves(nnx.state(self.model)))
        row = {
            "kind": "quality",
            "method": name,
            "seeds": 1,
            "captions": len(set(self.task.captions)),
            "steps": self.settings.steps,
            "guidance_scale": self.settings.guidance,
            "dtype": self.settings.dtype,
            **summary(found),
            "activation_bits": activations,
            "effective_bits": activations,
            "linear_weight_bits": weights,
            "weight_bytes": size,
            "weight_bits": 8 * size / count,
            **record,
        }
        for key in ("nvfp4_share", "int8_share", "bf16_share"):
            del row[key]
        self.clock.log(
            f"{name}: {row['psnr_db'] or float('inf'):.2f} dB, attributes "
            f"{row['attribute_score']:.3f}"
        )
        return row
