"""Error of prompt embeddings from bf16, INT8 and NVFP4 weights.

    python -m benchmarks.text_encoders --out text_encoders.json

Random T5 v1.1 and UMT5 encoders of the real depth (24 layers) and head width, narrower
than the real ones, with the distributions of T5's initialisation: scores of unit
variance, and a residual stream of about 1e5. Each is run in float32 from float32
weights (the oracle), and with stored weights: relative L2 error of all rows of the
prompt, the worst row, and the cosine with the oracle. Weights are Gaussian, or
heavy-tailed (Student t with 4 degrees of freedom) with norms that amplify one channel
in 64 twentyfold, as trained encoders do. A random network of this depth amplifies every
error (bf16 alone is off by 1 to 2%), so that the figures say how formats compare and
not what a prompt loses.
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

from sixbit_jax.benchmark import records
from sixbit_jax.formats import StoredWeight
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
from sixbit_jax.quantizers.storage import WeightRecipe
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.text_encoders.encode import encode
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder
from sixbit_jax.text_encoders.t5_config import T5Config

# Tokens, and tokens before the padding: CogVideoX reads its padding, Wan does not.
PROMPTS = {T5Encoder: (226, None), UMT5Encoder: (512, 120)}
STREAM = 1e5
_OUTLIER_EVERY, _OUTLIER = 64, 20.0


FORMATS: dict[str, WeightRecipe | None] = {
    "float32": None,
    "int8": UniformRecipe(bits=8, grid="minmax"),
    "int8 unrotated": UniformRecipe(bits=8, grid="minmax", rotation=0),
    "nvfp4": NVFP4Recipe(),
    "nvfp4 unrotated": NVFP4Recipe(rotation=0),
    "nvfp4 refined": NVFP4Recipe(refine=True),
}


def random_encoder(
    kind: type[T5Encoder], config: T5Config, *, heavy: bool, seed: int = 0
) -> T5Encoder:
    """An encoder with T5's initial variances and a stream as large as the real one."""
    model = kind(config, rngs=nnx.Rngs(seed))
    noise = np.random.default_rng(seed)
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in flat.items():
        name, shape = ".".join(map(str, path)), variable.get_value().shape
        if "norm" in name:
            value = 1 + 0.1 * noise.standard_normal(shape)
            if heavy:
                value[..., ::_OUTLIER_EVERY] *= _OUTLIER
        elif "relative_attention_bias" in name:
            value = noise.standard_normal(shape)
        else:
            # Student t with 4 degrees of freedom has variance 2.
            draw = noise.standard_t(4, shape) / np.sqrt(2) if heavy else None
            value = noise.standard_normal(shape) if draw is None else draw
            value = value / np.sqrt(shape[-1]) * _gain(name, config, heavy)
        variable.set_value(jnp.asarray(value, jnp.float32))
    nnx.update(model, nnx.from_flat_state(flat))
    return model


def _gain(name: str, config: T5Config, heavy: bool) -> float:
    """Of a matrix of variance 1 / fan-in."""
    # Mean square of a normalised row whose norm amplifies some channels.
    share = 1 + (_OUTLIER**2 - 1) / _OUTLIER_EVERY if heavy else 1.0
    unit = 1 / np.sqrt(share)
    if ".attention.q." in name:
        return unit / np.sqrt(config.d_kv)
    if name.endswith((".attention.k.weight", ".attention.v.weight")):
        return unit
    if ".ff.wi_" in name:
        return unit
    if name.endswith((".attention.o.weight", ".ff.wo.weight")):
        return STREAM / np.sqrt(2 * config.num_layers)
    return 1.0


def bits_per_weight(model: T5Encoder) -> float:
    """Stored bits of a value of the linears of the blocks."""
    bits = count = 0
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        value = leaf.get_value()
        if model.weight_role(".".join(map(str, path))):
            bits += 8 * value.nbytes
            count += int(np.prod(value.shape))
    return bits / count


def in_bfloat16(model: nnx.Module) -> nnx.Module:
    """A copy whose arrays that are not stored in a format are bfloat16."""
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        value = variable.get_value()
        if not isinstance(value, StoredWeight):
            flat[path] = variable.replace(value.astype(jnp.bfloat16))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def errors(found: jax.Array, exact: jax.Array, rows: int) -> dict[str, float]:
    """How far embeddings are from the oracle, over the rows of the prompt."""
    a, b = (np.asarray(x, np.float64)[:, :rows] for x in (found, exact))
    row = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    return {
        "relative_l2": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
        "worst_row": float(row.max()),
        "cosine": float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))),
    }


def measure(config: T5Config, *, tokens: int | None = None) -> list[dict[str, Any]]:
    """One record per encoder, distribution, format and compute dtype.

    Args:
      config: the config of the random encoders.
      tokens: the number of tokens of a prompt; None is that of the published pipelines.
    """
    run = nnx.jit(encode, static_argnames="dtype")
    found = []
    for kind, (length, words) in PROMPTS.items():
        length = length if tokens is None else tokens
        rows = length if words is None else min(words, length)
        noise = np.random.default_rng(1)
        ids = jnp.asarray(noise.integers(3, config.vocab_size, (1, length)), jnp.int32)
        mask = None if words is None else jnp.arange(length)[None] < rows
        for heavy in (False, True):
            plain = random_encoder(kind, config, heavy=heavy)
            exact = run(plain, ids, mask, dtype=jnp.float32)
            for name, recipe in FORMATS.items():
                stored = plain if recipe is None else quantize(plain, recipe)
                for dtype in (jnp.float32, jnp.bfloat16):
                    if dtype == jnp.float32 and recipe is None:
                        continue
                    narrow = dtype == jnp.bfloat16
                    model = in_bfloat16(stored) if narrow else stored
                    assert isinstance(model, T5Encoder)
                    output = run(model, ids, mask, dtype=dtype)
                    plain_name = recipe is None and narrow
                    found.append(
                        {
                            "encoder": kind.class_name,
                            "weights": "heavy-tailed" if heavy else "gaussian",
                            "format": "bfloat16" if plain_name else name,
                            "compute": jnp.dtype(dtype).name,
                            "bits_per_weight": bits_per_weight(model),
                            "tokens": length,
                            **errors(output, exact, rows),
                        }
                    )
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The records as a table."""
    lines = [
        "| encoder | weights | format | compute | bits | relative L2 | worst row |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['encoder']} | {row['weights']} | {row['format']} | "
            f"{row['compute']} | {row['bits_per_weight']:.2f} | "
            f"{row['relative_l2']:.4f} | {row['worst_row']:.4f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.text_encoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--width", type=int, default=512, help="D (real: 4096)")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True, help="results file, .json")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    args = parser.parse_args(given)
    shown = [args.out.name if word == str(args.out) else word for word in given]
    config = T5Config(
        vocab_size=1000,
        d_model=args.width,
        # The real proportions: as many heads as make D, 2.5 D inside.
        num_heads=args.width // 64,
        d_ff=args.width * 5 // 2,
        num_layers=args.layers,
    )
    found = [{"width": args.width, **row} for row in measure(config)]
    header = records.header(
        ["python", "-m", "benchmarks.text_encoders", *shown], commit_id=args.commit
    )
    records.write(args.out, header, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
