"""Strategies that are sized beforehand, as an operator would, to the whole mix of work: they are told it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from gswarm.scheduler.problem import Problem


@runtime_checkable
class Sized(Protocol):
    """A strategy that an operator sizes beforehand to the mix of work."""

    def size_to(self, mix: dict[str, float]) -> None:
        """Take in how many GPU-seconds there are of each model."""


def mix_of(problem: Problem) -> dict[str, float]:
    """GPU-seconds of work per model that has any tasks."""
    work = np.bincount(problem.model, weights=problem.seconds, minlength=len(problem.models))
    tasks = np.bincount(problem.model, minlength=len(problem.models))
    return {m.id: float(work[n]) * m.width for n, m in enumerate(problem.models) if tasks[n]}
