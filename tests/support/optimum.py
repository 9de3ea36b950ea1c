"""The least makespan of a tiny problem, by trying everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from gswarm.scheduler.plan import Execution
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Problem

Set = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Load:
    """One load of a model on a set; the same again is another one."""

    model: int
    gpus: Set
    memory_gb: float


def optimum(problem: Problem, *, online: bool = False) -> list[Execution]:
    """A plan of the least makespan. `online`: with hindsight, but nothing happens before its task's release.

    Tried is every order of the tasks that the graph allows with every choice of GPUs, each task begun as early as its
    order, its GPUs and what it needs allow: max(end of what it needs, GPUs free + switch, release + switch).

    This is enough. Take any plan and sort its tasks by start; those of one GPU are then in the order in which it has
    them, for its windows do not overlap. What a GPU holds depends on this order and the sets only, so a replay in the
    same order on the same sets is charged the same switches, and by induction starts no task later. There are finitely
    many orders and sets, so among their replays one has the least makespan and, of those, the least sum of starts.
    Sorted by its own starts and replayed, it cannot become earlier, so it stays as it is: orders in which a task would
    start before the one ahead of it need not be tried. With host memory, which must not run short, a switch also may be a
    waking, from the first end of a task of its model on, and a GPU is rid of what it holds by unload or by sleep, whichever
    is shorter; a switch that waits for that end is one more thing to try. GPUs that are alike and have not been touched are taken in order.
    """
    search = _Search(problem, online)
    search.go(-math.inf, 0.0)
    assert search.best_plan is not None
    return search.best_plan


class _Search:
    def __init__(self, problem: Problem, online: bool) -> None:
        self.problem, self.online = problem, online
        self.best = math.inf
        self.best_plan: list[Execution] | None = None
        self.models = problem.model.tolist()
        self.preds = [problem.preds_of(task).tolist() for task in range(problem.tasks)]
        self.fastest = max(gpu.speed for gpu in problem.gpus)
        self.tail = self._tails()
        # Per GPU: when it is free, and what it holds.
        self.gpus: list[tuple[float, _Load | None]] = [(gpu.free_at, None) for gpu in problem.gpus]
        self.ends: dict[int, float] = {}
        self.plan: list[Execution] = []
        for placement in problem.placements:
            load = _Load(placement.model, placement.gpus, problem.models[placement.model].memory_gb)
            for gpu in placement.gpus:
                self.gpus[gpu] = (self.gpus[gpu][0], load)
        for run in problem.running:
            self.ends[run.task] = run.end
            for gpu in run.gpus:
                self.gpus[gpu] = (max(run.end, self.gpus[gpu][0]), self.gpus[gpu][1])

    def _tails(self) -> list[float]:
        """Per task: its seconds and those of the longest path after it."""
        tail: dict[int, float] = {}
        first, succs = self.problem.succ_first.tolist(), self.problem.succs.tolist()

        def of(task: int) -> float:
            if task not in tail:
                after = max([of(succ) for succ in succs[first[task] : first[task + 1]]], default=0.0)
                tail[task] = float(self.problem.seconds[task]) / self.fastest + after
            return tail[task]

        return [of(task) for task in range(self.problem.tasks)]

    def go(self, last: float, makespan: float) -> None:
        if len(self.ends) == self.problem.tasks:
            makespan = max([makespan, *self.ends.values()])
            if makespan < self.best:
                self.best, self.best_plan = makespan, list(self.plan)
            return
        for task in range(self.problem.tasks):
            if task not in self.ends and all(pred in self.ends for pred in self.preds[task]):
                for gpus in self._sets(self.problem.models[self.models[task]].width):
                    self._try(task, gpus, last, makespan)

    def _sets(self, width: int) -> Iterator[Set]:
        untouched: dict[tuple[float, float], list[int]] = {}
        for gpu, (free, load) in enumerate(self.gpus):
            known = self.problem.gpus[gpu]
            if load is None and free == known.free_at:
                untouched.setdefault((known.speed, known.free_at), []).append(gpu)
        for gpus in itertools.combinations(range(len(self.gpus)), width):
            if all(
                alike[: len(set(alike) & set(gpus))] == [g for g in alike if g in gpus] for alike in untouched.values()
            ):
                yield gpus

    def _try(self, task: int, gpus: Set, last: float, makespan: float) -> None:
        number = self.models[task]
        model = self.problem.models[number]
        held = [self.gpus[gpu][1] for gpu in gpus]
        load = held[0]
        opens = max(self.gpus[gpu][0] for gpu in gpus)
        if self.online:
            opens = max(opens, float(self.problem.release[task]))
        if load is not None and load.model == number and load.gpus == gpus and all(h is load for h in held):
            self._run(task, gpus, load, opens, 0.0, last, makespan)
            return
        load, clear = _Load(number, gpus, model.memory_gb), max(self._clear_s(h) for h in held)
        self._run(task, gpus, load, opens, model.load_s + clear, last, makespan)
        rests = [end for done, end in self.ends.items() if self.models[done] == number]
        rests += [0.0 for placement in self.problem.placements if placement.model == number]
        if self.problem.host_memory_gb and model.can_sleep and rests:
            opens = max(opens, min(rests))
            self._run(task, gpus, load, opens, (model.wake_s or 0.0) + clear, last, makespan)

    def _clear_s(self, held: _Load | None) -> float:
        if held is None:
            return 0.0
        model, unload = self.problem.models[held.model], held.memory_gb / UNLOAD_GB_PER_S
        asleep = self.problem.host_memory_gb and model.can_sleep
        return min(unload, model.sleep_s or 0.0) if asleep else unload

    def _run(
        self, task: int, gpus: Set, load: _Load, opens: float, switch: float, last: float, makespan: float
    ) -> None:
        model = self.problem.models[load.model]
        start = max([opens + switch, *(self.ends[pred] for pred in self.preds[task])])
        if start < last or start + self.tail[task] >= self.best:
            return
        end = start + float(self.problem.seconds[task]) / min(self.problem.gpus[gpu].speed for gpu in gpus)
        before = list(self.gpus)
        for gpu in gpus:
            self.gpus[gpu] = (end, load)
        self.ends[task] = end
        request, node = self.problem.name_of(task).split("/")
        self.plan.append(Execution(request, node, model.id, gpus, start, end, switch))
        self.go(start, max(makespan, end))
        self.plan.pop()
        del self.ends[task]
        self.gpus = before
