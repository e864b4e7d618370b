"""Times operations that take less than the host needs to start them."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_SECONDS = 0.2
_UNROLL = 5


def repeated(function: Callable, times: int) -> Callable:
    """`function` many times in one program, each after the one before it.

    Many operations take less than the host needs to start one: calls from Python would
    measure Python. Every operand of a call hangs on a number of every array that the
    call before it made, so that none is left out, merged or moved out of the loop.

    Args:
      function: of arrays.
      times: how often; a multiple of 5.

    Returns:
      What takes the operands and gives them back.
    """
    once = jax.jit(function)

    def run(*operands):
        def body(given, _):
            # Whole arrays, not only the numbers that are read.
            made = jax.lax.optimization_barrier(once(*given))
            ends = [x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(made)]
            # Never true, which the compiler cannot know.
            change = jnp.stack(ends).sum() == 1.2345e30

            def touched(x):
                first = (0,) * x.ndim
                number = jnp.where(change, jnp.zeros((), x.dtype), x[first])
                return x.at[first].set(number)

            return jax.tree.map(touched, given), None

        return jax.lax.scan(body, operands, length=times, unroll=_UNROLL)[0]

    return run


def least_seconds(call: Callable, operands: Any) -> float:
    """Seconds of one call, the least of several; each takes what the last gave back."""
    operands = jax.block_until_ready(call(*operands))
    seconds = []
    while len(seconds) < 3 or (len(seconds) < 20 and sum(seconds) < _SECONDS):
        started = time.perf_counter()
        operands = jax.block_until_ready(call(*operands))
        seconds.append(time.perf_counter() - started)
    return min(seconds)
