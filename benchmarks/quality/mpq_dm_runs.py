"""The programs behind the MPQ-DMv2 table: errors, tuning, sampling."""

import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.quality.metrics import measure, summary
from benchmarks.quality.mpq_dm_rows import (
    CONFIGURATIONS,
    ROTATION,
    SWEEP,
    VARIANTS,
    Settings,
    Variant,
    options_of,
)
from benchmarks.quality.q_vdit_rows import Configuration as QVDiTConfiguration
from benchmarks.quality.q_vdit_runs import Workbench
from benchmarks.quality.runner import Clock
from sixbit_jax.formats import rotate, stored_layout
from sixbit_jax.methods.mpq_dm.method import (
    GROUPS,
    mpq_dm_method,
    mpq_dm_start,
    student_params,
    with_memory,
)
from sixbit_jax.methods.mpq_dm.pack import fixed_params
from sixbit_jax.methods.mpq_dm.relation_distillation import MTRDOptions
from sixbit_jax.methods.mpq_dm.tune import calibration_rows
from sixbit_jax.sampling.api import block_grid
from sixbit_jax.tuning.loop import TuneOptions, Tuner
from sixbit_jax.tuning.method import Start, weight_names, weights_of


@jax.jit
def _distance(left: Any, right: Any) -> Any:
    return jnp.square(left - right).sum()


class Bench(Workbench):
    """The Q-VDiT table's model, trajectories and sampler, with students of MPQ-DMv2."""

    def __init__(self, model: Any, settings: Settings, clock: Clock):
        super().__init__(model, settings, clock)
        self.own = settings
        self._kept: dict[Any, Start] = {}
        self._tuners: dict[int, Tuner] = {}
        self.numbers = {
            "levels": settings.levels_rate,
            "outside": settings.adapter_rate,
            "weight": settings.mtrd_weight,
            "temperature": settings.temperature,
            "length": float(settings.capacity),
        }
        self.inputs = calibration_rows(self.model, self.data, rows=settings.calibration)

    def memory(self, mtrd: bool) -> MTRDOptions:
        """Numbers of the memory, as far as they are known."""
        numbers, capacity = self.numbers, self.own.capacity
        return MTRDOptions(
            capacity=capacity,
            draws=self.own.draws,
            length=min(int(numbers["length"]), capacity),
            temperature=numbers["temperature"] or SWEEP["temperature"][1],
            weight=numbers["weight"] if mtrd else 0.0,
        )

    def begin(self, bits: int, variant: Variant) -> Start:
        """Levels and adapters of a variant before tuning."""
        options = options_of(bits, variant, self.own)
        if options not in self._kept:
            self._kept[options] = mpq_dm_start(
                self.model, options, num_steps=self.settings.steps, inputs=self.inputs
            )
        return with_memory(self._kept[options], self.memory(variant.mtrd))

    def tuner_of(self, rotation: int) -> Tuner:
        """One program for all variants of a rotation."""
        if rotation not in self._tuners:
            settings = self.own
            options = TuneOptions(
                iterations=settings.iterations,
                batch=settings.batch,
                dtype=settings.dtype,
                iterations_per_call=settings.iterations_per_call,
                remat=False,
            )
            method = mpq_dm_method(
                frames=self.frames,
                text_rows=self.text_rows,
                draws=settings.draws,
                rotation=rotation,
            )
            self._tuners[rotation] = Tuner(
                self.model, method, options, devices=jax.devices()[:1]
            )
        return self._tuners[rotation]

    def rates_of(self, variant: Variant) -> dict[str, float]:
        """Learning rates by group."""
        rates = dict.fromkeys(GROUPS, 0.0)
        if variant.tuned:
            rates["levels"] = self.numbers["levels"]
            if variant.placement is not None:
                rates[variant.placement] = self.numbers["outside"]
        return rates

    def train(
        self, start: Start, rates: dict[str, float], rotation: int, iterations: int
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Tunes a start for some iterations."""
        tuner = self.tuner_of(rotation)
        return tuner.run(
            tuner.init(start, rates),
            start.frozen,
            self.data,
            after_call=lambda s, _: int(s.iteration) >= iterations,
        )

    def held_out_error(self, trainable: Any, start: Start, rotation: int) -> float:
        """Mean squared error on held-out examples: iterations without learning."""
        tuner, settings = self.tuner_of(rotation), self.settings
        state = tuner.init(
            start._replace(trainable=trainable), dict.fromkeys(GROUPS, 0.0)
        )
        size = settings.batch * settings.iterations_per_call
        calls = min(-(-len(self.held_out) // size), 4)
        _, history = tuner.run(
            state,
            start.frozen,
            self.held_out,
            after_call=lambda s, _: (
                int(s.iteration) >= calls * settings.iterations_per_call
            ),
        )
        return float(history["mse"].mean())

    def search(self) -> list[dict[str, Any]]:
        """Learning rates and numbers of MTRD of least held-out error at 3 bits.

        Numbers that the settings give are not searched.

        Returns:
          A record of every attempt.
        """
        given = {
            "levels": self.own.levels_rate,
            "outside": self.own.adapter_rate,
            "weight": self.own.mtrd_weight,
            "temperature": self.own.temperature,
        }
        tried = []
        for name, values in SWEEP.items():
            if given.get(name) or (name == "length" and given["weight"]):
                continue
            found = {}
            variant = VARIANTS[
                "all" if name not in ("levels", "outside") else "rmq_oolri"
            ]
            for value in dict.fromkeys((*values, *self._current(name))):
                self.numbers[name] = value
                start = self.begin(3, variant)
                try:
                    state, _ = self.train(
                        start,
                        self.rates_of(variant),
                        0,
                        self.settings.sweep_iterations,
                    )
                    found[value] = self.held_out_error(state.trainable, start, 0)
                except FloatingPointError:
                    found[value] = math.inf
                tried.append(
                    {"kind": "sweep", "mse": found[value], "of": name, **self.numbers}
                )
                self.clock.log(f"{name} {value:g}: held-out mse {found[value]:.6f}")
            self.numbers[name] = min(found, key=found.__getitem__)
        return tried

    def _current(self, name: str) -> tuple[float, ...]:
        return (float(self.own.capacity),) if name == "length" else ()

    def errors(self, bits: int, name: str) -> dict[str, Any]:
        """Relative squared errors of weights and outputs of a start."""
        variant = VARIANTS[name]
        start = self.begin(bits, variant)
        rotation = ROTATION if variant.rotated else 0
        names = tuple(start.frozen["weights"])
        found = weights_of(student_params(start.trainable, start.frozen), names)
        made: dict[str, Any] = dict(found)
        total: dict[str, float] = dict.fromkeys(("weight", "output", "w", "y"), 0.0)
        salient = []
        for weight_name in names:
            weight, exact = made[weight_name], start.frozen["weights"][weight_name]
            matrix = weight.dequantize() + jnp.einsum(
                "...nr,...rk->...nk", weight.up, weight.down, precision="highest"
            )
            x = rotate(self.inputs[weight_name], rotation)
            product = partial(jnp.einsum, "lmk,lnk->lmn", x, precision="highest")
            total["weight"] += float(_distance(matrix, exact))
            total["w"] += float(_distance(exact, 0.0))
            total["output"] += float(_distance(product(matrix), product(exact)))
            total["y"] += float(_distance(product(exact), 0.0))
            rows = start.frozen["rows"][weight_name]
            salient.append(np.asarray(rows["num_salient"]) / exact.shape[-2])
        return {
            "kind": "error",
            "method": name,
            "bits": bits,
            "weight_error": total["weight"] / total["w"],
            "output_error": total["output"] / total["y"],
            "mean_salient_share": float(np.concatenate(salient).mean()),
        }

    def tune_variant(self, bits: int, name: str) -> tuple[Start, dict[str, Any]]:
        """The start with tuned values, and the record of the tuning."""
        variant = VARIANTS[name]
        start = self.begin(bits, variant)
        rotation = ROTATION if variant.rotated else 0
        record: dict[str, Any] = {
            "description": variant.description,
            "learning_rates": self.rates_of(variant),
            "iterations": 0,
            "tune_seconds": 0.0,
            "held_out_mse": None,
            "curve": [],
        }
        if variant.tuned:
            began = time.monotonic()
            state, history = self.train(
                start, self.rates_of(variant), rotation, self.settings.iterations
            )
            points = np.array_split(history["mse"], 20)
            record |= {
                "iterations": self.settings.iterations,
                "tune_seconds": round(time.monotonic() - began, 2),
                "held_out_mse": self.held_out_error(state.trainable, start, rotation),
                "curve": [float(part.mean()) for part in points if part.size],
            }
            start = start._replace(trainable=state.trainable)
        return start, record

    def row(self, configuration: str, name: str) -> dict[str, Any]:
        """Tunes, samples and measures one row."""
        bits, activation_bits = CONFIGURATIONS[configuration]
        if name == "q_vdit":
            self.learning_rates(None)
            tuned, record = self.tune(bits, "all_linears", "all")
            shape = QVDiTConfiguration(bits, activation_bits)
            found = self.evaluate(tuned, record, shape, "all_linears", "all")
            key = self.row_name(shape, "all_linears", "all")
            self.measured[f"{configuration}/q_vdit"] = self.measured.pop(key)
            return {
                **found,
                "method": f"{configuration}/q_vdit",
                "description": VARIANTS[name].description,
                "configuration": configuration,
                "variant": name,
            }
        variant = VARIANTS[name]
        start, record = self.tune_variant(bits, name)
        params = fixed_params(
            start.trainable,
            start.frozen,
            jnp.float32(2**activation_bits - 1),
            rotation=ROTATION if variant.rotated else 0,
        )
        graph, _ = nnx.split(self.model)
        samples = self._sample(nnx.merge(graph, params))
        found = measure(
            samples, self.reference.latents, self.task, block_grid(self.model)
        )
        method = f"{configuration}/{name}"
        self.measured[method] = found
        size = stored_bytes(self.model, bits, variant, self.own.rank)
        count = sum(x.size for x in jax.tree.leaves(nnx.state(self.model)))
        row = {
            "kind": "quality",
            "method": method,
            "configuration": configuration,
            "variant": name,
            "seeds": 1,
            "captions": len(set(self.task.captions)),
            "steps": self.settings.steps,
            "guidance_scale": self.settings.guidance,
            "dtype": self.settings.dtype,
            **summary(found),
            "activation_bits": float(activation_bits),
            "effective_bits": float(activation_bits),
            "linear_weight_bits": float(bits),
            "rotation": ROTATION if variant.rotated else 0,
            "weight_bytes": size,
            "weight_bits": 8 * size / count,
            **record,
        }
        for key in ("nvfp4_share", "int8_share", "bf16_share"):
            del row[key]
        self.clock.log(
            f"{method}: {row['psnr_db'] or math.inf:.2f} dB, attributes "
            f"{row['attribute_score']:.3f}, {record['tune_seconds']} s of tuning"
        )
        return row


def stored_bytes(model: Any, bits: int, variant: Variant, rank: int) -> int:
    """Bytes of the whole network: packed sites, everything else in bfloat16."""
    params = nnx.state(model)
    names = weight_names(model)
    sites = weights_of(params, names)
    total = 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    kind = f"uniform{bits}" if variant.quantizer == "uniform" else f"residual{bits}"
    for weight in sites.values():
        *lead, rows, columns = weight.shape
        found = stored_layout(kind, (rows, columns))
        if found is None:
            raise ValueError(f"expected a stored format, found {kind!r}")
        packed = sum(math.prod(s) * d.itemsize for s, d in found[1].values())
        if variant.placement == "outside":
            packed += 4 * rank * (rows + columns) + 4
        total += math.prod(lead) * packed - 2 * weight.size
    return total
