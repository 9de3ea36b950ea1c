"""A greedy pass from the end: over the problem with time reversed, whose order of tasks is then run forwards.

Where nothing is there at t = 0 a plan read backwards is nearly a plan of the reversed problem, in which a task waits for
its successors. Only loads and unloads differ: read backwards, GPUs start without a load, and what leaves them keeps them
for its load and for the unload of what comes next. A pass from the end sees other bottlenecks: what must end late goes
first, wide models get GPUs that are loading anyhow, and what is left over in the end is left over at the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gswarm.scheduler.plan import Plan, from_columns
from gswarm.scheduler.problem import Gpu, Problem
from gswarm.scheduler.strategies.batching import Pass
from gswarm.scheduler.strategies.instance import Instance
from gswarm.scheduler.strategies.policy import Policy


def is_reversible(problem: Problem) -> bool:
    """Whether passes from the end make sense: nothing is there or known to be due, GPUs are alike, tasks wait for others."""
    there = problem.placements or problem.running or problem.shared or problem.host_memory_gb
    alike = {gpu.memory_gb for gpu in problem.gpus}
    simple = all(gpu == Gpu(gpu.memory_gb) for gpu in problem.gpus) and len(alike) == 1
    return not there and problem.deadline is None and simple and len(problem.preds) > 0


class MirroredPass(Pass):
    """A pass over a reversed instance. Its makespan and its plan are those of the same order of tasks, run forwards."""

    def __init__(self, instance: Instance, policy: Policy) -> None:
        super().__init__(instance, policy, keep=True)
        self._tail = instance.load
        self._stop = math.inf
        self._plan: Plan | None = None

    def run(self, stop: float = math.inf) -> float:
        self._stop = stop
        ends = super().run(stop)
        if ends >= stop:
            return ends
        load = self._instance.load
        ends = max(free + load[m] for free, m, used in zip(self._free, self._placed, self._used, strict=True) if used)
        if ends >= stop:
            return ends
        self._plan = self._forwards()
        return float(self._plan.end.max())

    def plan(self) -> Plan:
        assert self._plan is not None
        return self._plan

    def _switched(self, m: int, gpus: Sequence[int]) -> tuple[float, float]:
        begins = self._now + max(self._unload_s(g) for g in gpus) + self._instance.unload[m]
        return max(self._now, begins), 0.0

    def _unload_s(self, gpu: int) -> float:
        """For how long from now on a GPU is kept by the load of what it held, below 0 if that is over."""
        last = self._last[gpu]
        return self._free[last] + self._instance.load[self._placed[last]] - self._now if last >= 0 else -math.inf

    def _place(self, m: int, gpus: Sequence[int], free: float, switch_s: float) -> int:
        self._owed += self._instance.load[m] * self._instance.width[m]
        return super()._place(m, gpus, free, switch_s)

    def _give_up(self, placement: int) -> None:
        super()._give_up(placement)
        m = self._placed[placement]
        load = self._instance.load[m]
        self._owed -= load * self._instance.width[m]
        if self._used[placement] and self._free[placement] + load >= self._stop:
            self._has_lost = True

    def _forwards(self) -> Plan:
        """Each task as soon as what it waits for has ended and its GPUs got through what comes before it on them."""
        instance, placed, sets, where = self._instance, self._placed, self._sets, self._where
        gpus, tasks = len(instance.problem.gpus), len(where)
        free, held = [0.0] * gpus, [-1] * gpus
        start_s, end_s, switch_s = [0.0] * tasks, [0.0] * tasks, [0.0] * tasks
        first, befores, seconds = instance.succ_first, instance.succs, instance.seconds
        load, unload = instance.load, [*instance.unload, 0.0]
        placed = [*placed, -1]  # what an empty GPU holds
        for task in self._order_forwards():
            placement = where[task]
            chosen, m = sets[placement], placed[placement]
            start = max([free[g] for g in chosen])
            last = held[chosen[0]]
            if last != placement or len(chosen) > 1:
                others = any(held[g] != last for g in chosen)
                if others or placed[last] != m or sets[last] != chosen:
                    switch_s[task] = load[m] + max([unload[placed[held[g]]] for g in chosen])
                    start += switch_s[task]
            for position in range(first[task], first[task + 1]):
                before = end_s[befores[position]]
                if before > start:
                    start = before
            end = start + seconds[task]
            start_s[task], end_s[task] = start, end
            for g in chosen:
                free[g], held[g] = end, placement
        return from_columns(gpus, start_s, end_s, switch_s, [sets[placement] for placement in where])

    def _order_forwards(self) -> list[int]:
        """Tasks by when they start forwards, those of no length after what they wait for."""
        tasks = np.concatenate(self._instance.levels)[::-1]
        start, end = np.asarray(self._start_s)[tasks], np.asarray(self._end_s)[tasks]
        found: list[int] = tasks[np.lexsort((-start, -end))].tolist()
        return found
