"""A problem as plain lists, which a pass over it in pure Python reads faster than columns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.bound import rough_bound
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Ints, Problem

NOTHING = 1e-9
"""Seconds of work that count as none, for sums of floats."""
MANY, STEPS = 20_000, 32
"""Beyond so many tasks, how finely what must follow them is told apart."""
SWITCH = 0.3
"""Part of a load that a change of models counts for in what must follow a task: many share one load."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which order tasks are taken."""

    rank: list[int]
    by_rank: list[int]
    line: list[int]
    """Number of each task's line: tasks of one model that feed the same one stand in one."""
    lines: list[tuple[int, int]]
    """Model of each line, and the one that it feeds: that of the first by rank of those that wait for a task; the number
    of models where there is none, where deadlines come first, or where tasks are so many that none runs dry."""


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
        self.levels = critical.levels(problem)
        self.target = rough_bound(problem, self.levels)
        """When all could be done, about."""
        self.uniform = len(set(problem.gpus)) == 1
        self._orders: dict[tuple[float, ...], Order] = {}
        self.unlocks = self._unlocks()
        """Per model: GPU-seconds that follow a GPU-second of it, that one counted."""
        self._mirrored: Instance | None = None

    def mirrored(self) -> Instance:
        """The same with time reversed: each task waits for its successors. Made once."""
        if self._mirrored is None:
            p = self.problem
            self._mirrored = Instance(
                replace(p, pred_first=p.succ_first, preds=p.succs, succ_first=p.pred_first, succs=p.preds)
            )
        return self._mirrored

    def _unlocks(self) -> list[float]:
        problem, count = self.problem, len(self.width)
        seconds = problem.seconds * np.asarray(self.width)[problem.model]
        work = np.bincount(problem.model, weights=seconds, minlength=count)
        total = np.bincount(problem.model, weights=critical.shares(problem, seconds, self.levels), minlength=count)
        found: list[float] = np.where(work > NOTHING, total / np.maximum(work, NOTHING), 1.0).tolist()
        return found

    def order(self, urgency: tuple[float, ...]) -> Order:
        """Tasks by what must follow them, longest first."""
        if urgency not in self._orders:
            seconds = self.problem.seconds
            if urgency:
                seconds = seconds * np.asarray(urgency)[self.problem.model]
            switch = SWITCH * np.asarray(self.load)
            follows = critical.tails(self.problem, seconds, self.levels, switch) + seconds
            if len(follows) > MANY:
                # Near ties go by number: neighbours in memory are then taken together, twice as fast at a million.
                follows = np.ceil(follows * (STEPS / max(float(follows.max()), NOTHING)))
            by_rank = np.argsort(-follows, kind="stable")
            if self._due is not None:
                by_rank = by_rank[np.argsort(self._due[by_rank], kind="stable")]
            rank = np.empty_like(by_rank)
            rank[by_rank] = np.arange(len(by_rank))
            if len(self._orders) > 8:
                self._orders.clear()
            line, lines = self._lines(rank, by_rank)
            self._orders[urgency] = Order(rank.tolist(), by_rank.tolist(), line, lines)
        return self._orders[urgency]

    def _lines(self, rank: Ints, by_rank: Ints) -> tuple[list[int], list[tuple[int, int]]]:
        problem, none = self.problem, len(self.width)
        feeds = np.full(problem.tasks, none)
        feeding = np.flatnonzero(np.diff(problem.succ_first))
        if len(feeding) and self._due is None and problem.tasks <= MANY:
            first = np.minimum.reduceat(rank[problem.succs], problem.succ_first[feeding])
            feeds[feeding] = problem.model[by_rank[first]]
        pairs = problem.model * (none + 1) + feeds
        used = np.flatnonzero(np.bincount(pairs))
        line = np.searchsorted(used, pairs)
        return line.tolist(), [divmod(pair, none + 1) for pair in used.tolist()]
