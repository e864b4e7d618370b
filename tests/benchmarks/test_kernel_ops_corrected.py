"""The benchmark's site computes what it says."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.corrected import FRAMES, TEXT_ROWS, cases, inputs, site
from sixbit_jax.routes import Route


def test_the_two_entries_differ_by_the_update():
    m, k, n = TEXT_ROWS + 2 * FRAMES, 64, 32
    x, weight, vectors = inputs(m, k, n, True, 0)
    run = jax.jit(site, static_argnums=(0, 1, 2))
    with_update = run("attn_out", "reference", Route.INT8, x, weight, vectors)
    without = run("attn_out", "reference", Route.INT8, x, weight.weight, vectors)
    activation = np.asarray(jax.nn.gelu(x.astype(jnp.float32)))
    factors = np.asarray(weight.factors)
    per_row = np.repeat(factors, [TEXT_ROWS, *[2] * FRAMES])[:, None]
    expected = per_row * (activation @ np.asarray(weight.down).T) @ weight.up.T
    found = with_update.astype(jnp.float32) - without.astype(jnp.float32)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 0.02


def test_every_layer_is_there_with_and_without():
    found = [(case.note, case.k, case.n) for case in cases()]
    assert len(found) == 6
    assert {note for note, _, _ in found} == {"plain", "rank-one"}
