"""What the sampler hands to a block and gets back, the same for every network."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from pallas_kernels.attention.api import Precision
from pallas_kernels.norm_rope import Heads
from sixbit_jax.nn.attention import attention_of_heads
from sixbit_jax.nn.axes import Axes
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteControl, SiteOptions, SiteStats, run_site
from sixbit_jax.nn.sparse_attention import Sparsity, TokenLayout, attention_by_plan


class BlockControl(NamedTuple):
    """One block's slice of the plan, with its own sites only."""

    route: Int[Array, "sites"]
    outlier_limit: Float[Array, ""]
    int8_scores: Bool[Array, ""]
    sparse: Bool[Array, ""] | None = None
    sparse_tau: Float[Array, ""] | None = None
    history: UInt8[Array, "batch heads q_tiles bytes"] | None = None


class BlockStats(NamedTuple):
    """What one block measured, its sites and its attention (see `policies.Stats`)."""

    outlier: Float[Array, "sites"]
    route: Int[Array, "sites"]
    error: Float[Array, "sites"]
    attention_density: Float[Array, ""]
    history: UInt8[Array, "batch heads q_tiles bytes"] | None = None


class Projection(NamedTuple):
    """Queries, keys or values of some tokens of the stream.

    Attributes:
      x: the channels of all heads.
      tokens: which of the stream they are of, from the first to before the last; None
        is all.
    """

    x: Float[Array, "batch tokens D"]
    tokens: tuple[int, int] | None = None

    def axes(self, axes: Axes) -> Axes:
        """The axes, for these tokens alone."""
        return axes if self.tokens is None else axes.between(*self.tokens)


class SiteRunner:
    """Runs the sites of one block by its plan and keeps what they measured.

    Lives for one trace of a block's forward pass.
    """

    def __init__(
        self,
        sites: tuple[str, ...],
        control: BlockControl | None,
        options: SiteOptions,
    ):
        """Begins a block.

        Args:
          sites: names of its sites, in the order of the plan.
          control: its slice of the plan, or None for full precision.
          options: which branches the program contains.
        """
        self._sites, self._control, self._options = sites, control, options
        self._measured: dict[str, SiteStats] = {}
        self._density: Array | None = None
        self._history = None if control is None else control.history

    def __call__(
        self,
        name: str,
        x: Array,
        *linears: Linear,
        tokens: tuple[int, int] | None = None,
        **fused,
    ) -> tuple[Array, ...]:
        """Runs a site; `fused` are the keyword arguments of `run_site`.

        Args:
          name: the name of the site.
          x: what its front reads.
          linears: the layers that read the activation.
          tokens: which of the stream x is of, from the first to before the last; None
            is all.

        Raises:
          ValueError: the block has no such site, or has run it.
        """
        if name not in self._sites or name in self._measured:
            raise ValueError(
                f"site {name!r}: expected each of {', '.join(self._sites)} once, found "
                f"it after {', '.join(self._measured) or 'none'}"
            )
        chosen = None
        if self._control is not None:
            route = self._control.route[self._sites.index(name)]
            chosen = SiteControl(route, self._control.outlier_limit)
        options = self._options
        if tokens is not None:
            options = replace(options, axes=options.axes.between(*tokens))
        outputs, measured = run_site(x, linears, chosen, options, **fused)
        self._measured[name] = measured
        return outputs

    @property
    def scores(self) -> Precision | Bool[Array, ""]:
        """Precision of attention: fixed, or traced: whether scores are INT8."""
        if self._options.attention != "plan":
            return self._options.attention
        return "bf16" if self._control is None else self._control.int8_scores

    def rows(self, count: int) -> int:
        """How many rows of the stream here stand for its first `count` tokens."""
        return self._options.axes.here(count)

    def all_tokens(self, x: Float[Array, "batch tokens *any"]) -> Array:
        """Something of every token, of all tokens wherever they are."""
        return self._options.axes.join(x)

    def by_heads(
        self,
        projections: Sequence[Projection],
        head_dim: int,
        run: Callable[..., Float[Array, "batch all_tokens own_heads head_dim"]],
    ) -> Float[Array, "batch tokens D"]:
        """Runs attention where it has all tokens of the heads that it computes.

        Without a mesh, that is here, and all heads. Over a mesh an all-to-all gives
        every device all tokens of some heads, group by group, and another takes the
        result back.

        Args:
          projections: queries, keys and values, in any number of parts of the stream.
          head_dim: channels of a head.
          run: called with each projection as [batch, all tokens, own heads, head_dim],
            and a function that picks from something of every head that of the own.

        Returns:
          What `run` returns, of this device's tokens and all heads.
        """
        axes = self._options.axes
        split = [p.x.reshape(*p.x.shape[:2], -1, head_dim) for p in projections]
        count = axes.groups(split[0].shape[2])
        found, densities, before = [], [], None
        for group in range(count):
            moved: dict[int, Array] = {}
            for tokens in dict.fromkeys(p.tokens for p in projections):
                those = [i for i, p in enumerate(projections) if p.tokens == tokens]
                part = projections[those[0]].axes(axes)
                found_here = part.to_heads(
                    [split[i] for i in those], group, count, after=before
                )
                moved |= dict(zip(those, found_here, strict=True))
            moved = dict(sorted(moved.items()))
            mixed = run(
                *moved.values(), partial(axes.own_heads, group=group, groups=count)
            )
            before = mixed
            densities.append(self._density)
            found.append(axes.to_tokens(mixed))
        if count > 1:
            self._density = jnp.stack(densities).mean()
        mixed = axes.joined_groups(found)
        return mixed.reshape(*mixed.shape[:2], -1)

    def attend(
        self,
        query: Heads,
        key: Heads,
        value: Float[Array, "batch tokens heads head_dim"],
        layout: TokenLayout,
        *,
        key_lengths: Int[Array, "batch"] | None = None,
    ) -> Float[Array, "batch tokens heads head_dim"]:
        """Self-attention by the plan: dense or sparse, with 16-bit or INT8 scores.

        Args:
          query, key: the projections and what is to be done with them.
          value: as it is.
          layout: where text and frames are among the tokens.
          key_lengths: tokens of each batch entry that are no padding, which is at the
            end of the text; None is all.

        All operands are as `by_heads` gives them.
        """
        options, control = self._options, self._control
        if options.sparse is None or control is None:
            self._density = jnp.float32(1.0)
            return attention_of_heads(
                query,
                key,
                value,
                kernels=options.kernels,
                precision=self.scores,
                key_lengths=key_lengths,
            )
        assert control.sparse is not None
        assert control.sparse_tau is not None
        mixed, density, self._history = attention_by_plan(
            query,
            key,
            value,
            Sparsity(
                options.sparse, control.sparse, control.sparse_tau, control.history
            ),
            layout,
            kernels=options.kernels,
            precision=self.scores,
            key_lengths=key_lengths,
        )
        self._density = options.axes.mean_of_heads(density)
        return mixed

    def stats(self) -> BlockStats:
        """The stats of all sites, in the order of the plan, and of attention.

        Raises:
          ValueError: a site has not run, or attention that the policy makes sparse.
        """
        missing = [name for name in self._sites if name not in self._measured]
        if missing:
            raise ValueError(
                f"block: expected all of its sites to run, found none of "
                f"{', '.join(missing)}"
            )
        density = self._density
        if density is None:
            if self._options.sparse is not None:
                raise ValueError(
                    "sparse attention: expected a block that runs its self-attention "
                    "by the plan, found one that this network computes on its own"
                )
            density = jnp.float32(1.0)
        columns = zip(*(self._measured[name] for name in self._sites), strict=True)
        outlier, route, error = (jnp.stack(column) for column in columns)
        return BlockStats(outlier, route, error, density, self._history)
