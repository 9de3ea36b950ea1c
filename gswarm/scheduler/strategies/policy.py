"""How greedy batching weighs its decisions: the policies that `offline` tries first, and how its search varies them.

Weights are ratios, so no unit needs tuning. T is when all could be done, about: the target of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random


@dataclass(frozen=True, slots=True)
class Policy:
    """What `batching.Pass` goes by."""

    shortfall: float = 0.5
    """Another copy is loaded for work that those there cannot do until T, beyond this many loads each..."""
    slack: float = 0.5
    """... where the GPUs have more to do until T than this share of what they can; below it, for any such work."""
    spread: float = 5.0
    """Or for ready work, if each copy would have more than this many loads of it."""
    idle: float = 0.7
    """Or if the GPUs have less to do than this share: loads then cost nothing."""
    future: float = 0.3
    """Weight of work whose predecessors still run, against ready work."""
    patience: float = 0.3
    """An idle placement is given up only for a need this many times its own."""
    reload: float = 0.0
    """Loads that giving up a model's last placement costs, in that comparison."""
    hold: float = 100.0
    """GPUs are kept idle for a wide model that does not fit yet, unless another's need times this exceeds its."""
    wide: float = 0.0
    """Exponent of a model's width in its need, beyond the GPU-seconds themselves: above 0 wide models go first."""
    prefetch: bool = True
    """Load models before their first tasks are ready, on GPUs that nothing needs."""
    stretch: float = 1.0
    """T over the bound on the makespan..."""
    headroom: float = 1.05
    """... but no sooner than this times a perfect packing of what is left."""
    weights: tuple[float, ...] = ()
    """Of each model's need; empty: all 1."""
    urgency: tuple[float, ...] = ()
    """Of each model's run times in what follows a task, for the order of tasks; empty: all 1."""
    forced: Mapping[int, int] = field(default_factory=dict)
    """The n-th load is of this model, if it can be."""
    quotas: Mapping[int, float] = field(default_factory=dict)
    """The n-th placement is given up after this much work."""
    mirrored: bool = False
    """From the end of the plan on, see `mirrored`."""


GREEDY = (
    Policy(shortfall=1.2, slack=0.0, spread=1.0, future=1.0, stretch=1.2, headroom=1.15),
    Policy(shortfall=1.2, spread=100.0, idle=0.9, future=1.0, hold=3.0, wide=0.5, stretch=1.05, headroom=1.0),
    Policy(shortfall=0.0, idle=0.5, future=0.0, patience=0.1, reload=2.0, stretch=1.1, headroom=1.1),
    Policy(shortfall=0.25, slack=0.8, spread=1.0, idle=0.8, future=0.6, patience=2.0, reload=1.0, headroom=1.15),
)
"""What `seconds=0` tries, chosen together for what they reach together; the first two are the best on large problems."""
MIRRORED = tuple(replace(policy, mirrored=True) for policy in GREEDY[2:])
"""Tried after these: what adds most to them."""


def drawn(random: Random) -> Policy:
    """Any sensible policy, for a search to begin with."""
    return Policy(
        shortfall=random.choice((0.0, 0.1, 0.25, 0.5, 0.8)),
        slack=random.choice((0.5, 0.7, 0.8, 0.9)),
        spread=random.choice((1.0, 2.0, 5.0, 20.0, 100.0)),
        idle=random.choice((0.0, 0.5, 0.8, 0.9)),
        future=random.choice((0.0, 0.1, 0.3, 0.6, 1.0)),
        patience=random.choice((0.0, 0.1, 0.3, 0.6, 1.0)),
        reload=random.choice((0.0, 1.0, 2.0)),
        wide=random.choice((0.0, 0.0, 1.0, 2.0)),
        prefetch=random.random() < 0.7,
        stretch=random.choice((1.0, 1.05, 1.1)),
        headroom=random.choice((1.0, 1.05, 1.1)),
    )


def mutated(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    """A policy near by: one of its parts changed, or two."""
    for _ in range(1 if random.random() < 0.6 else 2):
        policy = _MUTATIONS[random.choices(range(len(_MUTATIONS)), _ODDS)[0]](policy, random, models, makespan)
    return policy


def _scaled(value: float, random: Random, spread: float) -> float:
    return min(1e3, max(1e-3, value * math.exp(random.gauss(0.0, spread))))


def _moved(value: float, random: Random, spread: float, least: float, most: float) -> float:
    return min(most, max(least, value + random.gauss(0.0, spread)))


def _numbers(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    match random.randrange(12):
        case 0:
            return replace(policy, shortfall=_scaled(policy.shortfall, random, 0.4))
        case 1:
            return replace(policy, slack=_moved(policy.slack, random, 0.15, 0.0, 0.99))
        case 2:
            return replace(policy, spread=_scaled(policy.spread, random, 0.4))
        case 3:
            return replace(policy, idle=_moved(policy.idle, random, 0.2, 0.0, 1.0))
        case 4:
            return replace(policy, future=_moved(policy.future, random, 0.2, 0.0, 2.0))
        case 5:
            return replace(policy, patience=_scaled(policy.patience or 0.3, random, 0.5))
        case 6:
            return replace(policy, reload=_scaled(policy.reload or 0.3, random, 0.5))
        case 7:
            return replace(policy, hold=_scaled(policy.hold, random, 0.5))
        case 8:
            return replace(policy, wide=_moved(policy.wide, random, 0.5, -1.0, 3.0))
        case 9:
            return replace(policy, stretch=_moved(policy.stretch, random, 0.04, 0.9, 2.0))
        case 10:
            return replace(policy, headroom=_moved(policy.headroom, random, 0.03, 0.9, 2.0))
    return replace(policy, prefetch=not policy.prefetch)


def _weight(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    return replace(policy, weights=_one_scaled(policy.weights, random, models, 0.5))


def _urgency(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    return replace(policy, urgency=_one_scaled(policy.urgency, random, models, 0.7))


def _one_scaled(values: tuple[float, ...], random: Random, models: int, spread: float) -> tuple[float, ...]:
    changed = list(values or (1.0,) * models)
    chosen = random.randrange(models)
    changed[chosen] = _scaled(changed[chosen], random, spread)
    return tuple(changed)


def _force(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    forced = dict(policy.forced)
    load = random.randrange(models + max(4, len(forced)))
    if load in forced and random.random() < 0.5:
        del forced[load]
    else:
        forced[load] = random.randrange(models)
    return replace(policy, forced=forced)


def _quota(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    quotas = dict(policy.quotas)
    placement = random.randrange(models + max(4, len(quotas)))
    if placement not in quotas:
        quotas[placement] = random.random() * makespan
    elif random.random() < 0.4:
        del quotas[placement]
    else:
        quotas[placement] *= math.exp(random.gauss(0.0, 0.3))
    return replace(policy, quotas=quotas)


_MUTATIONS = (_numbers, _weight, _urgency, _force, _quota)
_ODDS = (6, 4, 3, 3, 4)
