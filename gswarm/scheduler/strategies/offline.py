"""`offline`: greedy batching of the whole problem, then anytime improvement of its policy by simulated annealing.

The search never edits a plan: it changes the policy (weights of models, order of tasks, single loads, how much work a
placement does before its GPUs go to another model) and runs the pass again, which takes a few microseconds a task; so
every plan it meets is valid by construction. It is seeded; with `iterations` given instead of `seconds` it is
deterministic. Annealing after Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220 (1983), with
the threshold rule of Dueck and Scheuer, "Threshold accepting", Journal of Computational Physics 90 (1990).

Some problems are far easier from their end (`mirrored`), so a few policies are tried that way too, and searched on from
where they are best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.plan import Plan, late_requests
from gswarm.scheduler.problem import Problem, ProblemError
from gswarm.scheduler.strategies import crowding
from gswarm.scheduler.strategies.batching import Pass
from gswarm.scheduler.strategies.instance import MANY, Instance
from gswarm.scheduler.strategies.mirrored import MirroredPass, is_reversible
from gswarm.scheduler.strategies.policy import GREEDY, MIRRORED, Policy, drawn, mutated
from gswarm.scheduler.strategies.sleeping import SleepingPass

NAME = "offline"
ENOUGH = 1.08
"""A greedy plan this close to the bound is not tried to be bettered by another policy."""
THRESHOLD = 0.004
"""Relative; how much worse a policy may be and still be gone on from, at the start. It falls to 0."""
PRICE = 0.01
"""What fewer late requests may cost, of the makespan."""
RETURN_AFTER = 400
"""Refused policies in a row after which the search goes back to the best one or to another start."""
DRAWN, STARTS = 48, 4
FEW = 5_000
"""Up to so many tasks, policies are tried from the end too."""


def plan(problem: Problem, *, seconds: float = 0.0, iterations: int = 0, seed: int = 0) -> Plan:
    """The best plan found, with everything submitted at t = 0.

    Searches for `seconds` of wall time, or for exactly `iterations` passes beyond the greedy ones. Both 0: greedy.
    """
    problem = problem.offline()
    if not problem.shared:
        return _batched(problem, seconds, iterations, seed)
    known, part = None, seconds / 2
    if _is_apart(problem):  # to have a GPU alone is never wrong
        known = _batched(replace(problem, shared=False), part, iterations, seed)
    if problem.host_memory_gb:  # nor is to let nothing sleep
        part /= 2
        awake = replace(problem, host_memory_gb=0.0)
        known = crowding.plan(awake, known, seconds=part, iterations=iterations, seed=seed)
    return crowding.plan(problem, known, seconds=part, iterations=iterations, seed=seed)


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
        policies = (GREEDY if problem.tasks <= MANY else GREEDY[:2]) + _mirrored(problem)
    best, makespan = None, math.inf
    for policy in policies:
        if makespan <= ENOUGH * instance.target:
            break
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
    if policy.mirrored:
        return MirroredPass(instance.mirrored(), policy)
    kind = SleepingPass if instance.problem.host_memory_gb else Pass
    return kind(instance, policy, keep=keep)


def _mirrored(problem: Problem) -> tuple[Policy, ...]:
    return MIRRORED if problem.tasks <= FEW and is_reversible(problem) else ()


def search(instance: Instance, *, seconds: float, iterations: int, seed: int) -> Policy:
    """The best policy found."""
    began = time.monotonic()
    policies = GREEDY + _mirrored(instance.problem)
    tried = sorted(((_pass(instance, p).run(), n, p) for n, p in enumerate(policies)), key=lambda t: t[:2])
    passes = 0

    def progress() -> float:
        return passes / iterations if iterations else (time.monotonic() - began) / seconds

    if not instance.model:
        return tried[0][2]
    random = Random(seed)
    for n in range(len(policies), len(policies) + DRAWN):
        if progress() >= 0.2:
            break
        start = drawn(random)
        tried.append((_pass(instance, start).run(), n, start))
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
