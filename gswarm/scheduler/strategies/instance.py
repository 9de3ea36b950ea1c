"""A problem as plain lists, which a pass over it in pure Python reads faster than columns."""

from __future__ import annotations

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.bound import rough_bound
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Problem

NOTHING = 1e-9
"""Seconds of work that count as none, for sums of floats."""
MANY, STEPS = 20_000, 32
"""Beyond so many tasks, how finely what must follow them is told apart."""


class Instance:
    """Made once and run under many policies."""

    def __init__(self, problem: Problem, *, by_deadline: bool = False) -> None:
        """`by_deadline`: tasks go by when they have to end, and only then by what must follow them."""
        self.problem = problem
        self._due = critical.latest_ends(problem) if by_deadline else None
        models = problem.models
        self.width = [m.width for m in models]
        self.load = [m.load_s for m in models]
        self.unload = [m.memory_gb / UNLOAD_GB_PER_S for m in models]
        self.model: list[int] = problem.model.tolist()
        self.seconds: list[float] = problem.seconds.tolist()
        self.missing: list[int] = np.diff(problem.pred_first).tolist()
        self.succ_first: list[int] = problem.succ_first.tolist()
        self.succs: list[int] = problem.succs.tolist()
        self.work: list[float] = np.bincount(problem.model, weights=problem.seconds, minlength=len(models)).tolist()
        self._order = critical.levels(problem)
        self.target = rough_bound(problem, self._order)
        """When all could be done, about."""
        self.uniform = len(set(problem.gpus)) == 1
        self._ranks: dict[tuple[float, ...], tuple[list[int], list[int]]] = {}

    def ranks(self, urgency: tuple[float, ...]) -> tuple[list[int], list[int]]:
        """Rank of each task by what must follow it, longest first, and the tasks by rank."""
        if urgency not in self._ranks:
            seconds = self.problem.seconds
            if urgency:
                seconds = seconds * np.asarray(urgency)[self.problem.model]
            follows = critical.tails(self.problem, seconds, self._order) + seconds
            if len(follows) > MANY:
                # Near ties go by number: neighbours in memory are then taken together, twice as fast at a million.
                follows = np.ceil(follows * (STEPS / max(float(follows.max()), NOTHING)))
            by_rank = np.argsort(-follows, kind="stable")
            if self._due is not None:
                by_rank = by_rank[np.argsort(self._due[by_rank], kind="stable")]
            rank = np.empty_like(by_rank)
            rank[by_rank] = np.arange(len(by_rank))
            if len(self._ranks) > 8:
                self._ranks.clear()
            self._ranks[urgency] = (rank.tolist(), by_rank.tolist())
        return self._ranks[urgency]
