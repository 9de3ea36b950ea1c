"""`offline`: greedy batching of the whole problem, then anytime improvement of its policy by simulated annealing.

The search never edits a plan: it changes the policy (weights of models, order of tasks, single loads, how much work a
placement does before its GPUs go to another model) and runs the pass again, which takes a few microseconds a task; so
every plan it meets is valid by construction. It is seeded; with `iterations` given instead of `seconds` it is
deterministic. Annealing after Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220 (1983), with
the threshold rule of Dueck and Scheuer, "Threshold accepting", Journal of Computational Physics 90 (1990).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from random import Random

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.plan import Plan, late_requests
from gswarm.scheduler.problem import Problem, ProblemError
from gswarm.scheduler.problem import replace as replaced
from gswarm.scheduler.strategies import crowding
from gswarm.scheduler.strategies.batching import MANY, Instance, Pass, Policy
from gswarm.scheduler.strategies.sleeping import SleepingPass

NAME = "offline"
GREEDY = (
    Policy(future=1.0, patience=0.0, wide=2.0),
    Policy(shortfall=0.25, future=0.1, spread=2.0, patience=2.0, prefetch=True),
    Policy(future=0.1, prefetch=True),
)
"""What `seconds=0` tries: wide models first and take what is there; or load ahead, and wait for work to come."""
THRESHOLD = 0.004
"""Relative; how much worse a policy may be and still be gone on from, at the start. It falls to 0."""
PRICE = 0.01
"""What fewer late requests may cost, of the makespan."""
RETURN_AFTER = 400
"""Refused policies in a row after which the search goes back to the best one or to another start."""
STARTS = 4


def plan(problem: Problem, *, seconds: float = 0.0, iterations: int = 0, seed: int = 0) -> Plan:
    """The best plan found, with everything submitted at t = 0.

    Searches for `seconds` of wall time, or for exactly `iterations` passes beyond the greedy ones. Both 0: greedy.
    """
    problem = problem.offline()
    if not problem.shared:
        return _batched(problem, seconds, iterations, seed)
    apart = None
    if _is_apart(problem):  # to have a GPU alone is never wrong
        apart = _batched(replaced(problem, shared=False), seconds / 2, iterations, seed)
    return crowding.plan(problem, apart, seconds=seconds / 2, iterations=iterations, seed=seed)


def _is_apart(problem: Problem) -> bool:
    """Whether each GPU holds one model at the most at t = 0."""
    there = {(p.model, tuple(sorted(p.gpus))) for p in problem.placements}
    there |= {(int(problem.model[r.task]), tuple(sorted(r.gpus))) for r in problem.running}
    gpus = [gpu for _, chosen in there for gpu in chosen]
    return len(set(gpus)) == len(gpus)


def _batched(problem: Problem, seconds: float, iterations: int, seed: int) -> Plan:
    instance = Instance(problem)
    if seconds or iterations:
        policies: tuple[Policy, ...] = (search(instance, seconds=seconds, iterations=iterations, seed=seed),)
    else:
        policies = GREEDY if problem.tasks <= MANY else GREEDY[:1]
    best, makespan = None, math.inf
    for policy in policies:
        made = _pass(instance, policy, keep=True)
        if (ends := made.run(makespan)) < makespan:
            best, makespan = made, ends
    if best is None:
        raise ProblemError("no order of loads lets every task run")
    plan = best.plan()
    return plan if problem.deadline is None else _in_time(problem, plan, policies, makespan)


def _in_time(problem: Problem, plan: Plan, policies: Sequence[Policy], makespan: float) -> Plan:
    """The plan of fewest late requests, by these policies with tasks in order of deadline, or the one that there is."""
    instance = Instance(problem, by_deadline=True)
    late = late_requests(problem, plan) or 0
    for policy in policies:
        made = _pass(instance, policy, keep=True)
        if late and made.run() <= makespan * (1 + PRICE):
            other = made.plan()
            if (later := late_requests(problem, other) or 0) < late:
                plan, late = other, later
    return plan


def _pass(instance: Instance, policy: Policy, *, keep: bool = False) -> Pass:
    kind = SleepingPass if instance.problem.host_memory_gb else Pass
    return kind(instance, policy, keep=keep)


def search(instance: Instance, *, seconds: float, iterations: int, seed: int) -> Policy:
    """The best policy found."""
    began = time.monotonic()
    tried = sorted(((_pass(instance, p).run(), n, p) for n, p in enumerate(GREEDY)), key=lambda t: t[:2])
    passes = 0

    def progress() -> float:
        return passes / iterations if iterations else (time.monotonic() - began) / seconds

    best, _, policy = tried[0]
    if not instance.model:
        return policy
    for n, start in enumerate(_starts(), len(GREEDY)):
        if progress() >= 0.2:
            break
        tried.append((_pass(instance, start).run(), n, start))
        passes += 1
    tried.sort(key=lambda t: t[:2])
    bound = lower_bound(instance.problem).value
    starts = [(makespan, start) for makespan, _, start in tried[:STARTS]]
    random = Random(seed)
    best, policy = starts[0]
    at, now = starts[0]
    refused = 0
    while (part := progress()) < 1 and best > bound:
        allowed = at * (1 + THRESHOLD * (1 - part))
        changed = _mutate(now, random, len(instance.width), best)
        makespan = _pass(instance, changed).run(allowed + 1e-9)
        passes += 1
        if makespan <= allowed:
            at, now, refused = makespan, changed, 0
            if makespan < best:
                best, policy = makespan, changed
            continue
        refused += 1
        if refused > RETURN_AFTER:
            at, now = (best, policy) if random.random() < 0.5 else random.choice(starts)
            refused = 0
    return policy


def _starts() -> Iterator[Policy]:
    for patience, shortfall, future, prefetch in product((0.6, 0.0, 2.0), (0.5, 0.1, 1.5), (0.6, 0.1), (False, True)):
        yield Policy(shortfall=shortfall, future=future, patience=patience, prefetch=prefetch)


def _mutate(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    """A policy near by: one of its parts changed, or two."""
    for _ in range(1 if random.random() < 0.6 else 2):
        policy = _MUTATIONS[random.choices(range(len(_MUTATIONS)), _ODDS)[0]](policy, random, models, makespan)
    return policy


def _scaled(value: float, random: Random, spread: float) -> float:
    return min(1e3, max(1e-3, value * math.exp(random.gauss(0.0, spread))))


def _numbers(policy: Policy, random: Random, models: int, makespan: float) -> Policy:
    match random.randrange(7):
        case 0:
            return replace(policy, shortfall=_scaled(policy.shortfall, random, 0.4))
        case 1:
            return replace(policy, future=min(2.0, max(0.0, policy.future + random.gauss(0.0, 0.2))))
        case 2:
            return replace(policy, spread=_scaled(policy.spread, random, 0.4))
        case 3:
            return replace(policy, patience=_scaled(policy.patience or 0.3, random, 0.5))
        case 4:
            return replace(policy, hold=_scaled(policy.hold, random, 0.5))
        case 5:
            return replace(policy, wide=min(3.0, max(-1.0, policy.wide + random.gauss(0.0, 0.5))))
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
