"""How many placements of each model any plan that ends by T must have, from when its tasks can run at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gswarm.scheduler.problem import Floats, Ints

QUANTILES = 10
"""Heads and tails that are told apart, each, per model."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Per model (row) and window (column): the tasks with head >= `head` and tail >= `tail` run for `work` seconds.

    They run between `head` and T less `tail`, one after another on each placement, so that there are at least
    work / (T - head - tail) placements; the most that any window asks for holds for the whole plan.
    """

    head: Floats
    tail: Floats
    work: Floats

    def placements(self, t: float, r: float = 0.0, q: float = 0.0) -> Floats | None:
        """At least so many of each model, counting tasks of windows from `r` to `t` - `q` only; None: no plan ends by t."""
        span = t - self.head - self.tail
        asked = np.where((self.head >= r) & (self.tail >= q), self.work, 0.0)
        if ((span <= 0) & (asked > 0)).any():
            return None
        # A hair less than the quotient: rounding must never ask for one placement too many.
        counts = np.ceil(np.divide(asked, span, out=np.zeros_like(asked), where=asked > 0) * (1 - 1e-12))
        found: Floats = counts.max(axis=1, initial=0.0)
        return found


def demand(models: int, model: Ints, seconds: Floats, head: Floats, tail: Floats) -> Demand:
    """From columns over tasks."""
    size = QUANTILES + 1
    heads, tails = np.zeros((models, size)), np.zeros((models, size))
    work = np.zeros((models, size, size))
    order = np.argsort(model, kind="stable")
    first = np.searchsorted(model[order], np.arange(models + 1))
    points = np.linspace(0, 1, size)
    for m in range(models):
        tasks = order[first[m] : first[m + 1]]
        if not len(tasks):
            continue
        heads[m] = np.quantile(head[tasks], points, method="lower")
        tails[m] = np.quantile(tail[tasks], points, method="lower")
        # The last threshold that a task reaches; it then counts in the windows of all before it too.
        row = np.searchsorted(heads[m], head[tasks], side="right") - 1
        column = np.searchsorted(tails[m], tail[tasks], side="right") - 1
        cells = np.bincount(row * size + column, weights=seconds[tasks], minlength=size * size).reshape(size, size)
        work[m] = cells[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
    return Demand(
        head=np.repeat(heads, size, axis=1),
        tail=np.tile(tails, (1, size)),
        work=work.reshape(models, size * size),
    )
