"""`offline` on GPUs that several models share: the causal strategies on all requests at once, then better weights.

A plan is what a strategy does when everything is told at t = 0, so each is valid by construction. The search changes the
weights of `crowd.py`, whose tasks go by what must follow them here, and keeps what is not worse. It is seeded; with
`iterations` given instead of `seconds` it is deterministic.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from random import Random

from gswarm.scheduler import critical
from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.plan import Plan, late_requests
from gswarm.scheduler.problem import Problem
from gswarm.scheduler.simulate import SimulationError, simulate
from gswarm.scheduler.strategies import SHARED, create
from gswarm.scheduler.strategies.crowd import Crowd
from gswarm.scheduler.strategies.instance import MANY


@dataclass(frozen=True, slots=True)
class Weights:
    """Those of `Crowd`; see there."""

    switch: float = 2.0
    demand: float = 0.25
    balance: float = 2.0


GREEDY = (Weights(), Weights(0.5, 0.5, 0.5), Weights(8.0, 2.0, 8.0))
"""What `seconds=0` tries, beside the other strategies."""


def plan(problem: Problem, known: Plan | None, *, seconds: float, iterations: int, seed: int) -> Plan:
    """The best plan found, of a problem whose requests are all there at t = 0, or the one that is known.

    Raises SimulationError if there is none.
    """
    began = time.monotonic()
    urgency = _urgency(problem)
    made = [] if known is None else [known]
    many = problem.tasks > MANY
    for name in () if many else SHARED:
        try:
            made.append(simulate(problem, create(name, shared=True)))
        except SimulationError:
            continue
    tried = [
        (_worth(problem, found := _crowd(problem, w, urgency)), n, w, found)
        for n, w in enumerate(GREEDY[:1] if many else GREEDY)
    ]
    worth, _, weights, best = min(tried, key=lambda t: t[:2])
    for other in made:
        if (other_worth := _worth(problem, other)) < worth:
            worth, best = other_worth, other
    if not (seconds or iterations) or not problem.tasks:
        return best
    random, at, passes = Random(seed), worth, 0
    bound = lower_bound(problem).value
    while worth[0] > bound and (passes < iterations if iterations else time.monotonic() - began < seconds):
        changed = _mutate(weights, random)
        found = _crowd(problem, changed, urgency)
        passes += 1
        found_worth = _worth(problem, found)
        if found_worth <= at or random.random() < 0.05:
            at, weights = found_worth, changed
        if found_worth < worth:
            worth, best = found_worth, found
    return best


def _urgency(problem: Problem) -> dict[str, float]:
    follows = critical.tails(problem, problem.seconds, critical.levels(problem)) + problem.seconds
    return {str(task): seconds for task, seconds in enumerate(follows.tolist())}


def _crowd(problem: Problem, weights: Weights, urgency: dict[str, float]) -> Plan:
    return simulate(
        problem,
        Crowd(
            switch_weight=weights.switch,
            demand_weight=weights.demand,
            balance_weight=weights.balance,
            urgency=urgency,
            max_passed=problem.tasks,
        ),
    )


def _worth(problem: Problem, plan: Plan) -> tuple[float, int]:
    """Less is better: the makespan, then how many requests are late."""
    return (float(plan.end.max()) if len(plan.end) else 0.0, late_requests(problem, plan) or 0)


def _mutate(weights: Weights, random: Random) -> Weights:
    def scaled(value: float) -> float:
        return min(100.0, max(0.01, value * math.exp(random.gauss(0.0, 0.7))))

    match random.randrange(3):
        case 0:
            return replace(weights, switch=scaled(weights.switch))
        case 1:
            return replace(weights, demand=scaled(weights.demand))
    return replace(weights, balance=scaled(weights.balance))
