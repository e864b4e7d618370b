"""What of a run is split over which axes of a mesh, and how its parts meet.

One small static object that is handed down from the sampler to the blocks. Without
axes every method gives back what it is given, and nothing is added to a program.

Tokens are split run by run: text, clean first frames and the rest of the video are
runs of their own, of which every device has an equal part, in that order. So a block
treats "the first rows" of its part as it would those of the whole. Where a run does not
divide, the last parts are filled with copies of its last token: they go through the
blocks as the token itself does, so that no maximum changes; sums leave them out.

Attention is Ulysses' (arXiv 2309.14509): an all-to-all gives every device all tokens
of some heads. From there on nothing knows of the mesh, until the way back.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

type Names = tuple[str, ...]

MATRIX = 2
"""Axes of what is split of a layer's weights: rows of matrices, codes and scales."""


@dataclass(frozen=True)
class Axes:
    """Names of mesh axes, each with more than one device; static.

    Attributes:
      tokens: over which the tokens of a forward pass are split.
      branches: over which guidance branches are split.
      weights: over which stacked weights are split; also among the other two.
      parts: devices that share the tokens.
      branch_parts: devices that share the branches, 1 or 2.
      weight_parts: devices that share the weights.
      stacks: the stacks of the network: their matrices are what `weights` splits.
      one_plan: the branches decide as one (batched guidance): sums are over them too.
      runs: tokens of each run, in order; set for one forward pass.
    """

    tokens: Names = ()
    branches: Names = ()
    weights: Names = ()
    parts: int = 1
    branch_parts: int = 1
    weight_parts: int = 1
    stacks: Names = ()
    one_plan: bool = False
    runs: tuple[int, ...] = ()

    @property
    def rows(self) -> Names:
        """Over which the rows of one plan are split."""
        return self.tokens + (self.branches if self.one_plan else ())

    def total(self, tree: Any) -> Any:
        """Sums over all rows of one plan."""
        return jax.lax.psum(tree, self.rows) if self.rows else tree

    def largest(self, x: Array) -> Array:
        """The largest value over all rows of one plan."""
        return jax.lax.pmax(x, self.rows) if self.rows else x

    def largest_of_tokens(self, x: Array) -> Array:
        """The largest value over all tokens of the same batch entries."""
        return jax.lax.pmax(x, self.tokens) if self.tokens else x

    def mean_of_branches(self, x: Array) -> Array:
        """The mean over the branches' devices."""
        return jax.lax.pmean(x, self.branches) if self.branches else x

    def all_branches(self, x: Float[Array, "rows ..."]) -> Float[Array, "all ..."]:
        """The rows of all branches, conditional ones first."""
        if not self.branches:
            return x
        return jax.lax.all_gather(x, self.branches, tiled=True)

    def agreed(self, tree: Any) -> Any:
        """The first device's values, on all devices that share a plan.

        A conditional that holds collectives must go one way everywhere. Sums come out
        alike on all devices, but nothing needs to rest on the last bit of them.
        """
        if not self.rows:
            return tree
        mine = jax.lax.axis_index(self.rows) == 0

        def from_first(x: Array) -> Array:
            kept = x.astype(jnp.int32) if x.dtype == jnp.bool_ else x
            kept = jax.lax.psum(jnp.where(mine, kept, jnp.zeros_like(kept)), self.rows)
            return kept.astype(x.dtype)

        return jax.tree.map(from_first, tree)

    def with_runs(self, boundaries: tuple[int, ...], tokens: int) -> "Axes":
        """For a stream of so many tokens whose treatment changes at `boundaries`."""
        if not self.tokens:
            return self
        edges = (0, *sorted(boundaries), tokens)
        runs = [stop - start for start, stop in itertools.pairwise(edges)]
        return replace(self, runs=tuple(run for run in runs if run))

    def _shares(self) -> list[int]:
        return [-(-run // self.parts) for run in self.runs]

    def here(self, count: int) -> int:
        """How many rows here stand for the first `count` tokens, whole runs.

        Raises:
          ValueError: `count` is inside a run.
        """
        if not self.tokens:
            return count
        seen = rows = 0
        for run, share in zip(self.runs, self._shares(), strict=True):
            if seen >= count:
                break
            seen, rows = seen + run, rows + share
        if seen != count:
            raise ValueError(f"tokens: expected whole runs of {self.runs}: {count}")
        return rows

    def between(self, start: int, stop: int) -> "Axes":
        """For the runs of the tokens from `start` to `stop` alone."""
        if not self.tokens:
            return self
        first, chosen = 0, []
        for run in self.runs:
            if start <= first and first + run <= stop:
                chosen.append(run)
            first += run
        return replace(self, runs=tuple(chosen))

    def take(self, x: Float[Array, "batch tokens ..."]) -> Float[Array, "batch n ..."]:
        """This device's part of the tokens."""
        if not self.tokens:
            return x
        index = jax.lax.axis_index(self.tokens)
        found, start = [], 0
        for run, share in zip(self.runs, self._shares(), strict=True):
            whole = self._filled(x[:, start : start + run], share)
            found.append(
                jax.lax.dynamic_slice_in_dim(whole, index * share, share, axis=1)
            )
            start += run
        return _joined(found)

    def _filled(self, run: Array, share: int) -> Array:
        missing = self.parts * share - run.shape[1]
        if not missing:
            return run
        fill = jnp.repeat(run[:, -1:], missing, axis=1)
        return jnp.concatenate([run, fill], 1)

    def join(self, x: Float[Array, "batch n ..."]) -> Float[Array, "batch tokens ..."]:
        """All tokens, from the parts of all devices."""
        if not self.tokens:
            return x
        return self._ordered(jax.lax.all_gather(x, self.tokens, axis=1, tiled=True))

    def _ordered(self, x: Float[Array, "batch filled ..."]) -> Array:
        """Tokens in their own order, from those of one device after the other."""
        shares = self._shares()
        x = x.reshape(x.shape[0], self.parts, sum(shares), *x.shape[2:])
        found, start = [], 0
        for run, share in zip(self.runs, shares, strict=True):
            part = x[:, :, start : start + share]
            part = part.reshape(x.shape[0], self.parts * share, *x.shape[3:])
            found.append(part[:, :run])
            start += share
        return _joined(found)

    def _by_device(self, x: Float[Array, "batch tokens ..."]) -> Array:
        """The inverse of `_ordered`."""
        shape, found, start = (x.shape[0], self.parts), [], 0
        for run, share in zip(self.runs, self._shares(), strict=True):
            part = self._filled(x[:, start : start + run], share)
            found.append(part.reshape(*shape, share, *x.shape[2:]))
            start += run
        joined = found[0] if len(found) == 1 else jnp.concatenate(found, 2)
        return joined.reshape(x.shape[0], -1, *x.shape[2:])

    def groups(self, heads: int) -> int:
        """Into how many groups of equal size the heads are exchanged.

        While one group attends, the next one travels. The kernels take heads in pairs:
        where a group would not have them, all heads go at once.
        """
        own = heads // self.parts
        return HEAD_GROUPS if self.tokens and own % (2 * HEAD_GROUPS) == 0 else 1

    def _group(self, x: Array, axis: int, group: int, groups: int) -> Array:
        """One group's heads, of all devices."""
        if groups == 1:
            return x
        lead, (heads, *rest) = x.shape[:axis], x.shape[axis:]
        x = x.reshape(*lead, self.parts, groups, heads // self.parts // groups, *rest)
        x = jax.lax.index_in_dim(x, group, axis + 1, keepdims=False)
        return x.reshape(*lead, heads // groups, *rest)

    def joined_groups(
        self, found: list[Float[Array, "batch n some_heads head_dim"]]
    ) -> Float[Array, "batch n heads head_dim"]:
        """All heads in order, from those of each group."""
        if len(found) == 1:
            return found[0]
        batch, rows, heads, head_dim = found[0].shape
        split = (batch, rows, self.parts, heads // self.parts, head_dim)
        whole = jnp.concatenate([x.reshape(split) for x in found], 3)
        return whole.reshape(batch, rows, -1, head_dim)

    def to_heads(
        self,
        parts: list[Float[Array, "batch n heads head_dim"]],
        group: int = 0,
        groups: int = 1,
        after: Array | None = None,
    ) -> list[Float[Array, "batch tokens own_heads head_dim"]]:
        """All tokens of this device's heads, from its tokens of all heads.

        Queries, keys and values travel together: one exchange is in flight at a time,
        and what attention waits for should be one.

        Args:
          parts: queries, keys and values.
          group, groups: which heads.
          after: what is computed before these are read, so that they may travel while
            it is.
        """
        if not self.tokens:
            return parts
        x = self._group(jnp.stack(parts), 3, group, groups)
        moved = jax.lax.all_to_all(
            x, self.tokens, split_axis=3, concat_axis=2, tiled=True
        )
        if after is not None:
            moved, _ = jax.lax.optimization_barrier((moved, after))
        return [self._ordered(part) for part in moved]

    def to_tokens(
        self, x: Float[Array, "batch tokens own_heads head_dim"]
    ) -> Float[Array, "batch n heads head_dim"]:
        """The inverse of `to_heads`."""
        if not self.tokens:
            return x
        return jax.lax.all_to_all(
            self._by_device(x), self.tokens, split_axis=1, concat_axis=2, tiled=True
        )

    def own_heads(
        self, weight: Float[Array, "heads *any"], group: int = 0, groups: int = 1
    ) -> Array:
        """What belongs to this device's heads."""
        if not self.tokens:
            return weight
        weight = self._group(weight, 0, group, groups)
        count = weight.shape[0] // self.parts
        start = jax.lax.axis_index(self.tokens) * count
        return jax.lax.dynamic_slice_in_dim(weight, start, count)

    def mean_of_heads(self, x: Float[Array, ""]) -> Float[Array, ""]:
        """The mean over all heads, of means over each device's."""
        return jax.lax.pmean(x, self.tokens) if self.tokens else x

    def gather(self, layer: Any) -> Any:
        """The whole weights of one layer, from every device's part of its matrices."""
        if not self.weights:
            return layer
        return jax.tree.map(
            lambda x: (
                jax.lax.all_gather(x, self.weights, tiled=True)
                if x.ndim == MATRIX
                else x
            ),
            layer,
        )

    def all_skip(self, skip: Bool[Array, ""]) -> Bool[Array, ""]:
        """Whether all devices skip that share weights and may decide apart."""
        apart = self.apart
        if not apart:
            return skip
        return jax.lax.pmin(skip.astype(jnp.int32), apart).astype(jnp.bool_)

    @property
    def apart(self) -> Names:
        """Axes that split weights, and branches with plans of their own."""
        if self.one_plan:
            return ()
        return tuple(name for name in self.weights if name in self.branches)

    def counted(self) -> Bool[Array, "n"] | None:
        """Which rows here are tokens and no copies; None where all are."""
        shares = self._shares()
        if all(
            run == share * self.parts
            for run, share in zip(self.runs, shares, strict=True)
        ):
            return None
        index = jax.lax.axis_index(self.tokens)
        found = [
            index * share + jnp.arange(share) < run
            for run, share in zip(self.runs, shares, strict=True)
        ]
        return jnp.concatenate(found)

    def sum_of_tokens(
        self, rows: Float32[Array, "batch n *any"]
    ) -> Float32[Array, "*any"]:
        """The sum over batch and tokens here, copies left out."""
        counted = self.counted()
        if counted is not None:
            shape = (1, -1) + (1,) * (rows.ndim - 2)
            rows = jnp.where(counted.reshape(shape), rows, 0.0)
        return rows.sum((0, 1))

    def num_rows(self, x: Array) -> int:
        """Rows of one plan on all devices, copies left out; [batch, n, ...] here."""
        batch = x.shape[0] * (self.branch_parts if self.one_plan else 1)
        return batch * (sum(self.runs) if self.tokens else x.shape[1])


NO_AXES = Axes()
HEAD_GROUPS = 2


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)


__all__ = ["MATRIX", "NO_AXES", "Axes"]
