"""A plan: where and when each task runs, in columns; and what it comes to, in figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gswarm.scheduler.problem import Floats, Ints, Problem
from gswarm.scheduler.types import Outcome

LATE_S = 1e-6
"""What ends this much after its deadline is in time."""


class Execution(NamedTuple):
    """One task's run. Its GPUs are taken from `start - switch_seconds` to `end`, seconds since t = 0."""

    request_id: str
    node_id: str
    model: str
    gpus: tuple[int, ...]
    start: float
    end: float
    switch_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Columns over the tasks of a problem; `where` is a number in `sets`."""

    gpus: int
    start: Floats
    end: Floats
    switch_s: Floats
    where: Ints
    sets: tuple[tuple[int, ...], ...]
    """Sets of GPUs, each sorted."""

    def executions(self, problem: Problem) -> Iterator[Execution]:
        """Every run, by start."""
        models = [m.id for m in problem.models]
        order = np.argsort(self.start, kind="stable").tolist()
        requests, model = problem.request_column().tolist(), problem.model.tolist()
        start, end, switch, where = (c.tolist() for c in (self.start, self.end, self.switch_s, self.where))
        for t in order:
            yield Execution(
                problem.requests[requests[t]],
                problem.nodes[t],
                models[model[t]],
                self.sets[where[t]],
                start[t],
                end[t],
                switch[t],
            )


def from_columns(
    gpus: int, start: Sequence[float], end: Sequence[float], switch_s: Sequence[float], sets: Sequence[tuple[int, ...]]
) -> Plan:
    """A plan from columns with each task's own set of GPUs."""
    numbers: dict[tuple[int, ...], int] = {}
    where = np.fromiter((numbers.setdefault(s, len(numbers)) for s in sets), dtype=np.int64, count=len(sets))
    return Plan(gpus, np.asarray(start), np.asarray(end), np.asarray(switch_s), where, tuple(numbers))


def late_requests(problem: Problem, plan: Plan) -> int | None:
    """How many requests end after a deadline of one of their tasks; None: the problem has no deadlines."""
    if problem.deadline is None:
        return None
    late = plan.end > problem.deadline + LATE_S
    return len(np.unique(np.searchsorted(problem.first, np.flatnonzero(late), side="right")))


def measure(problem: Problem, plan: Plan, bound_s: float, planning_s: float = 0.0) -> Outcome:
    """The figures of a plan for `problem` (pass `problem.offline()` for one that ignores arrivals).

    wait = first start of a request - its arrival; response = its last end - its arrival; percentiles interpolate
    linearly.
    """
    if not problem.tasks:
        return Outcome(gpus=plan.gpus, bound_s=bound_s, ratio=1.0)
    filled = np.flatnonzero(np.diff(problem.first) > 0)
    starts = problem.first[:-1][filled]
    wait = np.minimum.reduceat(plan.start, starts) - problem.arrivals[filled]
    response = np.maximum.reduceat(plan.end, starts) - problem.arrivals[filled]
    makespan = float(plan.end.max())
    widths = np.asarray([len(s) for s in plan.sets])[plan.where]
    work = float(((plan.end - plan.start) * widths).sum())
    w50, w99 = np.percentile(wait, [50, 99])
    r50, r99 = np.percentile(response, [50, 99])
    return Outcome(
        gpus=plan.gpus,
        tasks=problem.tasks,
        makespan_s=makespan,
        bound_s=bound_s,
        ratio=makespan / bound_s if bound_s > 0 else 1.0,
        switches=int((plan.switch_s > 0).sum()),
        switch_s=float(plan.switch_s.sum()),
        utilisation=work / (plan.gpus * makespan) if makespan > 0 else 0.0,
        wait_mean_s=float(wait.mean()),
        wait_p50_s=float(w50),
        wait_p99_s=float(w99),
        response_mean_s=float(response.mean()),
        response_p50_s=float(r50),
        response_p99_s=float(r99),
        planning_us_per_task=1e6 * planning_s / problem.tasks,
        late=late_requests(problem, plan),
    )
