"""`chain`: several policies as one."""

import math
from dataclasses import dataclass

from sixbit_jax.policies.base import (
    BlockGrid,
    Plan,
    Policy,
    PolicyState,
    Stats,
    StepIndex,
)
from sixbit_jax.routes import Route
from sixbit_jax.sparsity import SparseWay


def chain(*policies: Policy) -> Policy:
    """Applies policies in order, each refining the plan of those before it.

        chain(dmpq(predictor, threshold), tdc(tau), pdr())

    All of them learn from the plan that ran. Chains of equal policies are equal;
    chains of the same mechanisms with other numbers have equal `plan` and `update`,
    and share a compiled program. `chain()` is full precision.

    Raises:
      TypeError: an argument is not a `Policy`.
      ValueError: two of them choose blocks of keys for attention in different ways.

    >>> from sixbit_jax import chain, pdr, tdc
    >>> chain(tdc(0.2), pdr()).skips
    True
    >>> chain().routes  # full precision: no quantized route
    ()
    """
    for position, policy in enumerate(policies):
        if not isinstance(policy, Policy):
            raise TypeError(
                f"chain: expected policies, found {policy!r} at position {position}"
            )
    return Policy(
        init=_Init(tuple(p.init for p in policies)),
        plan=_Plan(tuple(p.plan for p in policies)),
        update=_Update(tuple(p.update for p in policies)),
        routes=tuple(sorted({Route(r) for p in policies for r in p.routes})),
        skips=_all_skips(policies),
        outlier_rule=any(p.outlier_rule for p in policies),
        group=_common_group(policies),
        attention=any(p.attention for p in policies),
        sparse=_common_way(policies),
    )


def _all_skips(policies: tuple[Policy, ...]) -> bool | tuple[int, ...]:
    blocks: set[int] = set()
    for policy in policies:
        if policy.skips is True:
            return True
        if policy.skips is not False:
            blocks.update(policy.skips)
    return tuple(sorted(blocks)) or False


def _common_group(policies: tuple[Policy, ...]) -> int | None:
    """The largest group that all skips of all policies respect."""
    groups = [0 if p.group is None else p.group for p in policies if p.skips]
    # gcd(0, g) = g: what skips all blocks skips every group of them.
    return (math.gcd(*groups) or None) if groups else 1


def _common_way(policies: tuple[Policy, ...]) -> SparseWay | None:
    ways = list(dict.fromkeys(p.sparse for p in policies if p.sparse is not None))
    if len(ways) > 1:
        raise ValueError(
            "chain: expected one way of choosing blocks of keys, found "
            + " and ".join(map(str, ways))
        )
    return ways[0] if ways else None


@dataclass(frozen=True)
class _Init:
    inits: tuple

    def __call__(self, grid: BlockGrid) -> PolicyState:
        return tuple(init(grid) for init in self.inits)


@dataclass(frozen=True)
class _Plan:
    plans: tuple

    def __call__(self, state: PolicyState, step: StepIndex, plan: Plan) -> Plan:
        for refine, part in zip(self.plans, state, strict=True):
            plan = refine(part, step, plan)
        return plan


@dataclass(frozen=True)
class _Update:
    updates: tuple

    def __call__(self, state: PolicyState, plan: Plan, stats: Stats) -> PolicyState:
        return tuple(
            update(part, plan, stats)
            for update, part in zip(self.updates, state, strict=True)
        )
