"""Programs that repeat an operation really run it that often."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.repeated import least_seconds, repeated


def test_repeating_an_operation_leaves_none_out():
    def work(x, y):
        return {"product": x @ y, "other": jnp.sin(y)}

    x, y = jnp.ones((3, 4)), jnp.ones((4, 5))
    program = jax.jit(repeated(work, 10)).lower(x, y).compile()
    for given, back in zip((x, y), program(x, y), strict=True):
        np.testing.assert_array_equal(given, back)
    found = program.as_text()
    # Five in the body of a loop that runs twice.
    assert len(re.findall(r" dot\(| custom-call\(|__onednn", found)) == 5
    assert len(re.findall(r"while\(", found)) == 1
    assert len(re.findall(r"f32\[4,5\]\S* sine\(", found)) == 5


def test_least_seconds_feeds_every_call_what_the_last_gave_back():
    seen = []

    def call(number):
        seen.append(number)
        return (number + 1,)

    assert least_seconds(call, (0,)) >= 0
    assert seen == list(range(len(seen)))
    assert len(seen) > 3
