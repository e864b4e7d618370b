"""Values that differ between the devices of a `shard_map`, and constants among them.

Inside a `shard_map` with JAX's default checks, both branches of a conditional and a
scan's carry before and after must agree over which mesh axes they vary. Constants vary
over none. Outside of a `shard_map` nothing here changes a program.
"""

from typing import Any

import jax


def varying_axes(*trees: Any) -> frozenset[str]:
    """The mesh axes over which any leaf differs."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array):
            axes |= jax.typeof(leaf).manual_axis_type.varying
    return axes


def vary(tree: Any, axes: frozenset[str]) -> Any:
    """The same values, said to vary over `axes`."""

    def one(leaf: Any) -> Any:
        missing = axes - jax.typeof(leaf).manual_axis_type.varying
        if not missing:
            return leaf
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying")

    return jax.tree.map(one, tree) if axes else tree


__all__ = ["vary", "varying_axes"]
