"""Error of one linear under each activation route, on activations of a model.

    python -m benchmarks.quality.activation_errors --out activation_errors.json

Records what every linear of the bundled model reads at several steps of
full-precision runs, and runs each linear alone on every route, with the same refined
4-bit weights on all of them: ||y - y_16||_2 / ||y_16||_2 over steps and prompts, mean
over layers, with y_16 from unquantized activations. Sweeps the number of channels that
share a live scale of ARQ.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.quality.study import (
    CALIBRATION_SEED,
    calibration_attributes,
    load_model,
)
from sixbit_jax.benchmark import records
from sixbit_jax.demo import vocabulary
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.demo.model import LATENT_SHAPE
from sixbit_jax.demo.models import demo_of
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.formats import StoredWeight
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteControl, SiteOptions, run_site
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.routes import Route
from sixbit_jax.tuning.observe import observe
from sixbit_jax.tuning.trajectories import record_trajectories

BLOCKS = (16, 32, 64, 128)
ROUTES = tuple(route for route in Route if route != Route.BF16)


def activations(model: Any, *, prompts: int, steps: int, examples: int) -> dict:
    """What each linear of a site reads, [layers, examples, tokens, K] by name."""
    demo = demo_of(model)
    chosen = calibration_attributes(prompts, evaluation_attributes(64))
    captions = [vocabulary.caption_of(row) for row in chosen]
    found = record_trajectories(
        model,
        demo.scheduler(),
        encode_captions(captions),
        encode_captions([""])[0],
        latent_shape=LATENT_SHAPE,
        num_steps=steps,
        guidance_scale=demo.guidance_scale,
        seed=CALIBRATION_SEED,
        batch=prompts,
    )
    picked = np.linspace(0, len(found) - 1, examples).astype(int)
    batch = found.batch(picked)
    return observe(model, [batch], lambda name, x: x, dtype=jnp.float32)


def linear_errors(
    x: jax.Array, w: jax.Array, recipe: UniformRecipe, blocks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Relative L2 error of one linear in every layer, by route and block size.

    Args:
      x: activations, [layers, examples, tokens, K].
      w: weights, [layers, N, K].
      recipe: the recipe of the stored weights.
      blocks: channels per live scale that are tried, of ARQ4 and ARQ8.
    """
    control = SiteControl(jnp.int32(0), jnp.float32(jnp.inf))
    runs = {route.name: (route, blocks[-1]) for route in ROUTES if _free(route)}
    for route in (Route.ARQ4, Route.ARQ8):
        runs |= {f"{route.name} block {n}": (route, n) for n in blocks}

    def one(operands: tuple[jax.Array, StoredWeight]) -> dict[str, jax.Array]:
        x, weight = operands
        linear = Linear(w.shape[2], w.shape[1], bias=False, rngs=nnx.Rngs(0))
        linear.weight = nnx.Param(weight)  # pyrefly: ignore[bad-assignment]
        exact = linear(x)

        def error(y: jax.Array) -> jax.Array:
            return jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)

        found = {}
        for name, (route, block) in runs.items():
            options = SiteOptions(routes=(route,), arq_block=block)
            found[name] = error(run_site(x, [linear], control, options)[0][0])
        return found

    stored = recipe.compress(w, rotation=recipe.rotation)
    errors = jax.jit(lambda *operands: jax.lax.map(one, operands))(x, stored)
    return {name: np.asarray(value) for name, value in errors.items()}


def _free(route: Route) -> bool:
    return route not in (Route.ARQ4, Route.ARQ8)


def run(
    model: Any,
    *,
    prompts: int = 2,
    steps: int = 50,
    examples: int = 8,
    blocks: Sequence[int] = BLOCKS,
) -> list[dict[str, Any]]:
    """One record per site, rotation and route.

    Args:
      model: in full precision.
      prompts, steps: those of the recorded runs.
      examples: inputs of the network taken from them, evenly spread.
      blocks: channels per live scale.
    """
    seen = activations(model, prompts=prompts, steps=steps, examples=examples)
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    weights = {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}
    made = []
    for rotation in (0, 128):
        recipe = UniformRecipe(4, rotation=rotation, grid="bgr")
        for name, x in seen.items():
            print(f"{name}, rotation {rotation}", file=sys.stderr, flush=True)
            found = linear_errors(x, weights[name], recipe, blocks)
            channels = np.abs(x).max((1, 2)) if rotation == 0 else None
            for route, errors in found.items():
                made.append(
                    {
                        "kind": "activation_error",
                        "linear": name,
                        "rotation": rotation,
                        "route": route,
                        "error_mean": float(errors.mean()),
                        "error_largest": float(errors.max()),
                        "channel_range": None
                        if channels is None
                        else float(np.mean(channels.max(-1) / np.median(channels, -1))),
                    }
                )
    return made


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Mean error over the linears, one line per route, without and with rotation."""
    lines = ["| route | unrotated | rotated by 128 |", "| --- | ---: | ---: |"]
    for route in dict.fromkeys(row["route"] for row in rows):
        cells = [
            np.mean(
                [
                    r["error_mean"]
                    for r in rows
                    if r["route"] == route and r["rotation"] == rotation
                ]
            )
            for rotation in (0, 128)
        ]
        lines.append(f"| {route} | {cells[0]:.4f} | {cells[1]:.4f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.activation_errors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="directory; default: the bundled checkpoint")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="results file, .json")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    args = parser.parse_args(given)
    shown = [args.out.name if word == str(args.out) else word for word in given]
    found = run(
        load_model(args.model),
        prompts=args.prompts,
        steps=args.steps,
        examples=args.examples,
    )
    header = records.header(
        ["python", "-m", "benchmarks.quality.activation_errors", *shown],
        commit_id=args.commit,
    )
    records.write(args.out, header, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
