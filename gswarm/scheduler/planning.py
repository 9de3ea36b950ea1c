"""Any strategy over a whole problem: `offline` plans it at once, the others decide event by event on virtual time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from gswarm.scheduler import strategies
from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.plan import Plan, measure
from gswarm.scheduler.problem import Model, Problem
from gswarm.scheduler.simulate import Simulation
from gswarm.scheduler.strategies import offline
from gswarm.scheduler.types import Outcome


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the CPU seconds that deciding took."""

    plan: Plan
    planning_s: float


def names(*, online: bool) -> list[str]:
    """Strategies that can plan: `offline` needs to know everything at t = 0."""
    return strategies.names() if online else [*strategies.names(), offline.NAME]


def plan_with(name: str, problem: Problem, *, seconds: float = 0.0, iterations: int = 0, seed: int = 0) -> Planned:
    """The plan of a strategy; the last three are for `offline`. Pass `problem.offline()` to have all told at t = 0.

    Raises KeyError for a strategy that there is not, SimulationError for one that cannot do this problem.
    """
    if name == offline.NAME:
        began = time.process_time()
        plan = offline.plan(problem, seconds=seconds, iterations=iterations, seed=seed)
        return Planned(plan, time.process_time() - began)
    simulation = Simulation(problem, strategies.create(name, shared=problem.shared))
    return Planned(simulation.run(), simulation.planning_s)


def outcome(name: str, problem: Problem, planned: Planned, bound_s: float, *, online: bool) -> Outcome:
    """The figures of a plan as a row."""
    measured = measure(problem, planned.plan, bound_s, planned.planning_s)
    return replace(measured, strategy=name, mode="online" if online else "offline")


def noisy_bound(problem: Problem, noise: float, *, online: bool) -> float:
    """A bound for times that were off by up to `noise`: execution times as in `problem`, loads as short as they may be."""
    least = 1 - noise

    def shortened(model: Model) -> Model:
        return replace(
            model,
            load_s=least * model.load_s,
            memory_gb=least * model.memory_gb,
            sleep_s=None if model.sleep_s is None else least * model.sleep_s,
            wake_s=None if model.wake_s is None else least * model.wake_s,
        )

    models = [shortened(model) for model in problem.models]
    return lower_bound(replace(problem, models=tuple(models)), online=online).value
