"""The choice of an implementation."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper


def refuse(reason):
    def run():
        raise NotImplementedError(reason)

    return run


def test_takes_the_first_that_supports_the_inputs():
    found = dispatch(
        "op",
        (
            Implementation("fast", refuse("odd K")),
            Implementation("middle", lambda: jnp.float32(2)),
            Implementation("slow", lambda: jnp.float32(3)),
        ),
        None,
    )
    assert found == 2


def test_a_name_is_never_replaced():
    implementations = (
        Implementation("fast", refuse("odd K")),
        Implementation("slow", lambda: jnp.float32(3)),
    )
    with pytest.raises(NotImplementedError, match="odd K"):
        dispatch("op", implementations, "fast")


def test_a_named_implementation_is_not_asked_for_its_device():
    implementations = (
        Implementation("fast", lambda: jnp.float32(1), refuse("no GPU")),
    )
    assert dispatch("op", implementations, "fast") == 1


def test_all_reasons_are_reported():
    implementations = (
        Implementation("fast", lambda: jnp.float32(1), refuse("no GPU")),
        Implementation("slow", refuse("float64")),
    )
    with pytest.raises(ExceptionGroup, match="no implementation of op") as caught:
        dispatch("op", implementations, None)
    assert [str(e) for e in caught.value.exceptions] == ["no GPU", "float64"]
    assert "'slow'" in caught.value.exceptions[1].__notes__[0]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'quick'.*\['fast'\]"):
        dispatch("op", (Implementation("fast", lambda: jnp.float32(1)),), "quick")


def test_hopper_is_refused_without_a_gpu():
    with pytest.raises(NotImplementedError, match=r"\(9, 0\).*no NVIDIA GPU"):
        needs_hopper()
