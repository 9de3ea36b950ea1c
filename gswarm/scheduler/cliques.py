"""Models that are loaded all at one time, or some of them twice: each has a task before and a task after one of each other.

A placement has its GPUs from the begin of its load to the end of its last task. Let u and v be placed once each. Where a
task of u must end before one of v begins, u's time begins before v's ends; where it is so the other way round too, the
two overlap. Of models of which any two do, all are there at some one moment (Helly's theorem for intervals), and then their
widths sum to no more than the number of GPUs.
"""

from __future__ import annotations

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.problem import Bools, Ints, Problem

BITS = 62
"""Models that are told apart: those whose loads take most GPU-seconds."""


class Followers:
    """Which models follow which, transitively."""

    def __init__(self, problem: Problem, order: list[Ints]) -> None:
        """`order` is from `critical.levels`."""
        cost = np.array([m.width * m.load_s for m in problem.models])
        self._models = np.sort(np.argsort(-cost, kind="stable")[:BITS])
        self._models = self._models[cost[self._models] > 0]
        bit = np.zeros(len(problem.models), dtype=np.int64)
        bit[self._models] = 1 << np.arange(len(self._models), dtype=np.int64)
        self._model, self._bit = problem.model, bit
        self._after = critical.marks(problem, bit[problem.model], order)

    def cliques(self, chosen: Bools) -> list[Ints]:
        """Sets of models any two of which follow each other among the chosen tasks, which nothing but such may follow.

        One that each model is in, found greedily; each set once.
        """
        size = len(self._models)
        after = np.zeros(len(self._bit), dtype=np.int64)
        np.bitwise_or.at(after, self._model[chosen], self._after[chosen])
        follows = (after[self._models][:, None] & self._bit[self._models]) != 0
        mutual = follows & follows.T
        found: dict[tuple[int, ...], None] = {}
        most_first = np.argsort(-mutual.sum(axis=1), kind="stable")
        for first in range(size):
            clique, fits = [first], mutual[first].copy()
            fits[first] = False
            for m in most_first:
                if fits[m]:
                    clique.append(int(m))
                    fits &= mutual[m]
                    fits[m] = False
            if len(clique) > 1:
                found[tuple(sorted(clique))] = None
        return [self._models[list(clique)] for clique in found]
