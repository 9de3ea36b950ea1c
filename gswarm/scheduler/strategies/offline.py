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
from random import Random

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.plan import Plan
from gswarm.scheduler.problem import Problem, ProblemError
from gswarm.scheduler.strategies.batching import MANY, Instance, Pass
from gswarm.scheduler.strategies.policy import GREEDY, Policy, drawn, mutated

NAME = "offline"
ENOUGH = 1.02
"""A greedy plan this close to the bound is not tried to be bettered by another policy."""
THRESHOLD = 0.004
"""Relative; how much worse a policy may be and still be gone on from, at the start. It falls to 0."""
RETURN_AFTER = 400
"""Refused policies in a row after which the search goes back to the best one or to another start."""
DRAWN, STARTS = 48, 4


def plan(problem: Problem, *, seconds: float = 0.0, iterations: int = 0, seed: int = 0) -> Plan:
    """The best plan found, with everything submitted at t = 0.

    Searches for `seconds` of wall time, or for exactly `iterations` passes beyond the greedy ones. Both 0: greedy.
    """
    instance = Instance(problem.offline())
    if seconds or iterations:
        policies: tuple[Policy, ...] = (search(instance, seconds=seconds, iterations=iterations, seed=seed),)
    else:
        policies = GREEDY if problem.tasks <= MANY else GREEDY[:2]
    best, makespan = None, math.inf
    for policy in policies:
        if makespan <= ENOUGH * instance.target:
            break
        made = Pass(instance, policy, keep=True)
        if (ends := made.run(makespan)) < makespan:
            best, makespan = made, ends
    if best is None:
        raise ProblemError("no order of loads lets every task run")
    return best.plan()


def search(instance: Instance, *, seconds: float, iterations: int, seed: int) -> Policy:
    """The best policy found."""
    began = time.monotonic()
    tried = sorted(((Pass(instance, p).run(), n, p) for n, p in enumerate(GREEDY)), key=lambda t: t[:2])
    passes = 0

    def progress() -> float:
        return passes / iterations if iterations else (time.monotonic() - began) / seconds

    best, _, policy = tried[0]
    if not instance.model:
        return policy
    random = Random(seed)
    for n in range(len(GREEDY), len(GREEDY) + DRAWN):
        if progress() >= 0.2:
            break
        start = drawn(random)
        tried.append((Pass(instance, start).run(), n, start))
        passes += 1
    tried.sort(key=lambda t: t[:2])
    bound = lower_bound(instance.problem).value
    starts = [(makespan, start) for makespan, _, start in tried[:STARTS]]
    best, policy = starts[0]
    at, now = starts[0]
    refused = 0
    while (part := progress()) < 1 and best > bound:
        allowed = at * (1 + THRESHOLD * (1 - part))
        changed = mutated(now, random, len(instance.width), best)
        makespan = Pass(instance, changed).run(allowed + 1e-9)
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
