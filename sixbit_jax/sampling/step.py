"""One denoising step: the guidance branches, the policy, and the scheduler."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from sixbit_jax.measured import NO_CHANGE
from sixbit_jax.models.network import Extra, PromptInputs
from sixbit_jax.nn.axes import Axes
from sixbit_jax.nn.site import SiteOptions, relative_l1
from sixbit_jax.nn.sparse_attention import no_history
from sixbit_jax.nn.token_order import reordered, restored, token_order
from sixbit_jax.nn.varying import vary
from sixbit_jax.policies.base import (
    Plan,
    PolicyState,
    Stats,
    StepIndex,
    full_precision_plan,
)
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.block_scan import scan_blocks
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.noise import draw_step
from sixbit_jax.sampling.program import Inputs, Program


class Carry(NamedTuple):
    """What a step leaves to the next.

    Attributes:
      latents: after the step.
      scheduler_state, policy_state: theirs.
      cache: deltas of all branches, or None.
      output: guided prediction of the step.
      latent_change: relative L1 change of the latents in the step.
      history: of sparse attention, for all branches and blocks, or None.
    """

    latents: Float[Array, "batch F C H W"]
    scheduler_state: Any
    policy_state: PolicyState
    cache: delta_cache.DeltaCache | None
    output: Float[Array, "batch F C H W"]
    latent_change: Float[Array, ""]
    history: UInt8[Array, "branches blocks *state"] | None = None


class Row(NamedTuple):
    """What a step adds to the trace; a leading branch axis but for `change`."""

    skip: Bool[Array, "branches blocks"]
    refresh: Bool[Array, "branches blocks"]
    int8_scores: Bool[Array, "branches blocks"]
    stats: Stats
    change: Float[Array, ""]


def with_first_frames(latents: Array, inputs: Inputs) -> Array:
    """The latents with the given frames in place of those denoised there."""
    given = inputs.first_frames
    if given is None:
        return latents
    rest = latents[:, given.shape[1] :]
    return jnp.concatenate([given.astype(latents.dtype), rest], 1)


def prepare_prompts(network: Any, inputs: Inputs, program: Program) -> Any:
    """What `network.embed` takes as a prompt, with a leading branch axis."""
    branches, rows = inputs.text.shape[:2]
    image = inputs.image_embeds
    if image is not None:
        # Every guidance branch sees the image.
        image = jnp.concatenate([image] * (rows // image.shape[0]))
    made = []
    for branch in range(branches):
        mask, pooled = (
            None if part is None else part[branch]
            for part in (inputs.mask, inputs.pooled)
        )
        axes = program.site.axes
        given = PromptInputs(inputs.text[branch], mask, pooled, image, axes)
        made.append(network.prepare_prompt(given, dtype=program.dtype))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *made)


@dataclass(frozen=True, eq=False)
class Stepper:
    """The steps of one network, as functions of what the step before left.

    Attributes:
      program, inputs: those of the run.
      network: a `models.network.Network`.
      prompts: what `prepare_prompts` made.
      first: the first step of this network.
      axes: mesh axes over which the run differs (see `nn.varying`).
    """

    program: Program
    inputs: Inputs
    network: Any
    prompts: Any
    first: int
    axes: frozenset[str]

    @property
    def _rows(self) -> int:
        return self.inputs.text.shape[1]

    def _extra(self) -> Extra:
        inputs = self.inputs
        ofs, guidance = (
            None if value is None else jnp.full((self._rows,), value)
            for value in (inputs.ofs, inputs.embedded_guidance)
        )
        frames = inputs.first_frames
        return Extra(ofs, guidance, 0 if frames is None else frames.shape[1])

    def _model_input(self, latents: Array) -> Array:
        inputs, dtype = self.inputs, self.program.dtype
        x = with_first_frames(latents, inputs).astype(dtype)
        if inputs.image_latents is not None:
            x = jnp.concatenate([x, inputs.image_latents.astype(dtype)], 2)
        return jnp.concatenate([x] * (self._rows // inputs.noise.shape[0]))

    def _embed(self, latents: Array, prompt: Any, timestep: Array) -> tuple[Array, Any]:
        x = self._model_input(latents)
        time = jnp.full((self._rows,), timestep, jnp.float32)
        return self.network.embed(x, prompt, time, self._extra())

    def _token_order(self) -> np.ndarray | None:
        """Of the video tokens inside the blocks; None as they come."""
        way = self.program.site.sparse
        if way is None:
            return None
        _, frames, _, height, width = self.inputs.noise.shape
        grid = self.network.config.token_grid(frames, height, width)
        return token_order(grid, way.order)

    def _forward(
        self,
        latents: Array,
        prompt: Any,
        timestep: Array,
        plan: Plan,
        cache,
        branch,
        history: Array | None,
    ) -> tuple[Array, Any, Stats, Array | None]:
        tokens, conditioning = self._embed(latents, prompt, timestep)
        order = self._token_order()
        if order is not None:
            tokens, conditioning = reordered(tokens, conditioning, order)
        options = self._options(tokens, conditioning)
        tokens, cache, stats, history = scan_blocks(
            self.network,
            options.axes.take(tokens),
            conditioning,
            plan,
            cache,
            branch * self.program.layout.num_slots,
            layout=self.program.layout,
            options=options,
            history=history,
        )
        tokens = options.axes.join(tokens)
        if order is not None:
            tokens = restored(tokens, conditioning, order)
        shape = (self._rows, *self.inputs.noise.shape[1:])
        output = self.network.unembed(tokens, conditioning, shape)
        return output, cache, stats, history

    def _options(self, tokens: Array, conditioning: Any) -> SiteOptions:
        """The program's, with the runs of tokens that are split."""
        site = self.program.site
        if not site.axes.tokens:
            return site
        axes = site.axes.with_runs(conditioning.boundaries, tokens.shape[1])
        return replace(site, axes=axes)

    def _branches(
        self, carry: Carry, where: StepIndex
    ) -> tuple[Any, tuple[Array, Plan, Stats, Array | None]]:
        """All guidance branches, one after the other."""
        num_blocks, num_sites = self.network.num_blocks, len(self.network.sites)
        timestep = self.inputs.timesteps[where.index]

        def branch(cache, xs):
            number, prompt, state, history = xs
            start = full_precision_plan(num_blocks, num_sites)
            plan = self.program.plan(state, where, start)
            if self.first:
                # There is no delta of this network yet.
                plan = plan._replace(skip=plan.skip & (where.index > self.first))
            plan = self.program.site.axes.agreed(plan)
            output, cache, stats, history = self._forward(
                carry.latents, prompt, timestep, plan, cache, number, history
            )
            found = (output.astype(jnp.float32), plan, stats, history)
            return vary(cache, self.axes), found

        numbers = jnp.arange(self.program.branches)
        xs = (numbers, self.prompts, carry.policy_state, carry.history)
        return jax.lax.scan(branch, carry.cache, xs)

    def _combine(self, index: Array, outputs: Array) -> Array:
        """The guided prediction from [branches, rows, F, C, H, W] outputs."""
        flat = outputs.reshape(-1, *outputs.shape[2:])
        flat = self.program.site.axes.all_branches(flat)
        if not self.program.guided:
            return flat
        conditional, unconditional = jnp.split(flat, 2)
        return guide(conditional, unconditional, self.inputs.guidance_scale[index])

    def _noise(self, index: Array, shape: tuple[int, ...]) -> Array | None:
        if not self.program.scheduler.stochastic:
            return None
        if self.inputs.step_noise is not None:
            return self.inputs.step_noise[index]
        return draw_step(self.inputs.key, index, shape)

    def _update(self, state: PolicyState, plans: Plan, stats: Stats) -> PolicyState:
        """Each branch's policy learns from its own stats."""
        updated = []
        for branch in range(self.program.branches):
            one = jax.tree.map(lambda x, i=branch: x[i], (state, plans, stats))
            updated.append(self.program.update(*one))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *updated)

    def _int8_scores(self, plans: Plan) -> Array:
        if self.program.site.attention == "plan":
            return plans.int8_scores
        everywhere = self.program.site.attention == "int8"
        return jnp.full(plans.int8_scores.shape, everywhere)

    def __call__(self, carry: Carry, index: Int[Array, ""]) -> tuple[Carry, Row]:
        """Runs step `index`."""
        program, axes = self.program, self.program.site.axes
        count = jnp.int32(program.num_steps)
        where = StepIndex(index, count, carry.latent_change)
        cache, (outputs, plans, stats, history) = self._branches(carry, where)
        output = self._combine(index, outputs)
        change = relative_l1(output, carry.output)
        change = jnp.where(index > self.first, change, NO_CHANGE)
        shared = axes.mean_of_branches(stats.delta_change.mean(0, keepdims=True))
        stats = stats._replace(
            output_change=jnp.full((program.branches,), change),
            latent_change=jnp.full((program.branches,), carry.latent_change),
            shared_change=jnp.broadcast_to(shared, stats.delta_change.shape),
        )
        policy_state = self._update(carry.policy_state, plans, stats)
        latents, scheduler_state = program.scheduler.step(
            carry.scheduler_state,
            index,
            output,
            carry.latents,
            self._noise(index, output.shape),
        )
        after = Carry(
            latents=latents,
            scheduler_state=scheduler_state,
            policy_state=policy_state,
            cache=cache,
            output=output,
            latent_change=relative_l1(latents, carry.latents),
            history=history,
        )
        scores = self._int8_scores(plans)
        row = Row(~stats.computed, plans.refresh, scores, stats, change)
        return vary(after, self.axes), row

    def empty_cache(self) -> delta_cache.DeltaCache | None:
        """A delta cache that holds nothing, or None if nothing may be skipped."""
        layout = self.program.layout
        if not layout.blocks:
            return None
        slots = self.program.branches * layout.num_slots
        return delta_cache.init(slots, self._stream().shape, layout.cache_format)

    def _stream(self) -> jax.ShapeDtypeStruct:
        """The residual stream of this device's tokens."""

        def own_tokens() -> Array:
            tokens, conditioning = self._embed(
                jnp.zeros(self.inputs.noise.shape),
                jax.tree.map(lambda x: x[0], self.prompts),
                jnp.float32(0.0),
            )
            return self._options(tokens, conditioning).axes.take(tokens)

        return jax.eval_shape(own_tokens)

    def empty_history(self) -> Array | None:
        """Of sparse attention that remembers, for all branches and blocks, or None."""
        site = self.program.site
        if site.sparse is None or site.sparse.kind != "history":
            return None
        if site.axes != Axes():
            raise ValueError(
                "sparse attention, history: expected a run on one device, found one "
                "split over a mesh"
            )
        rows, tokens, _ = self._stream().shape
        config = self.network.config
        shape = (rows, tokens, config.num_attention_heads, config.attention_head_dim)
        one = no_history(shape, site.sparse, self.program.dtype)
        assert one is not None
        blocks = (self.program.branches, self.network.num_blocks)
        return jnp.broadcast_to(one, (*blocks, *one.shape))

    def start(self, carry: Carry | None) -> Carry:
        """The carry before this network's first step.

        Args:
          carry: what the network before left, or None. Latents and scheduler go on;
            policy and cache start again, for deltas and statistics are of one network.
        """
        inputs, cache = self.inputs, self.empty_cache()
        history = self.empty_history()
        if carry is None:
            carry = Carry(
                latents=inputs.noise,
                scheduler_state=inputs.scheduler_state,
                policy_state=inputs.policy_state,
                cache=cache,
                output=jnp.zeros(inputs.noise.shape, jnp.float32),
                latent_change=jnp.float32(0.0),
                history=history,
            )
        else:
            carry = carry._replace(
                policy_state=inputs.policy_state, cache=cache, history=history
            )
        return vary(carry, self.axes)


__all__ = ["Carry", "Row", "Stepper", "prepare_prompts", "with_first_frames"]
