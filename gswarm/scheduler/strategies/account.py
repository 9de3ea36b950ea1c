"""What a greedy pass keeps account of: tasks that are left, placements and GPUs, as time goes on. It decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gswarm.scheduler.plan import Plan, from_columns
from gswarm.scheduler.strategies.instance import Instance, Order

GPU_FREE, PLACEMENT_FREE = -1, -2


class Account:
    """See the module's docstring."""

    def __init__(self, instance: Instance, order: Order, *, keep: bool) -> None:
        self._instance, self._order, self._keep = instance, order, keep
        count, gpus, tasks = len(instance.width), len(instance.problem.gpus), len(instance.model)
        self._lines: list[list[int]] = [[] for _ in order.lines]
        """Heaps of ranks of ready tasks."""
        self._fed: list[list[tuple[int, list[int]]]] = [[] for _ in range(count)]
        """Per model, its lines with whom they feed."""
        for (m, fed), line in zip(order.lines, self._lines, strict=True):
            self._fed[m].append((fed, line))
        self._ready = [0] * (count + 1)
        """Ready tasks of each model, and of none."""
        self._ready_s = [0.0] * count
        self._left_s = instance.work.copy()
        """Work not started yet, ready or not."""
        self._idle: list[list[int]] = [[] for _ in range(count)]
        """Idle placements of each model."""
        self._copies = [0] * (count + 1)
        """Of each model, and of none."""
        self._bare: list[int] = []
        """Idle GPUs that belong to no placement."""
        self._idle_gpus = 0
        self._last = [-1] * gpus
        """Placement that each GPU was last given to, in the plan's view: one that never ran a task is not in the plan."""
        self._placed: list[int] = []
        """Model of each placement."""
        self._sets: list[tuple[int, ...]] = []
        self._free: list[float] = []
        """When each placement is loaded, then when its last task ends."""
        self._switch: list[float] = []
        """Load that its next task is charged."""
        self._before: list[list[int]] = []
        """What its GPUs had last before each placement."""
        self._used: list[bool] = []
        self._served: list[float] = []
        self._slow: list[float] = []
        """What run times are multiplied by."""
        self._loading: list[list[float]] = [[] for _ in range(count)]
        """When each placement of a model that is still being loaded will be."""
        self._events: list[tuple[float, int, int]] = []
        """A heap of (time, task, placement), or of (time, GPU_FREE, GPU) and (time, PLACEMENT_FREE, placement)."""
        self._now = 0.0
        self._start_s = [0.0] * tasks if keep else []
        self._end_s = [0.0] * tasks if keep else []
        self._switch_s = [0.0] * tasks if keep else []
        self._where = [0] * tasks if keep else []

    def plan(self) -> Plan:
        """The plan of a finished run that kept its tasks' times."""
        gpus = len(self._instance.problem.gpus)
        sets = [self._sets[placement] for placement in self._where]
        return from_columns(gpus, self._start_s, self._end_s, self._switch_s, sets)

    def _set_up(self) -> list[int]:
        """Put what is there at t = 0 in place; gives the number of predecessors that each task waits for."""
        problem, missing = self._instance.problem, self._instance.missing.copy()
        taken: set[int] = set()
        for running in problem.running:
            m = int(problem.model[running.task])
            placement = self._place(m, running.gpus, 0.0, 0.0)
            self._used[placement] = True
            taken.update(running.gpus)
            self._left_s[m] -= float(problem.seconds[running.task])
            missing[running.task] = -1
            self._events.append((running.end, running.task, placement))
            if self._keep:
                self._end_s[running.task], self._where[running.task] = running.end, placement
        free_at = [gpu.free_at for gpu in problem.gpus]
        for there in problem.placements:
            if taken.isdisjoint(there.gpus):
                placement = self._place(there.model, there.gpus, 0.0, 0.0)
                self._used[placement] = True
                self._events.append((max(free_at[g] for g in there.gpus), PLACEMENT_FREE, placement))
                taken.update(there.gpus)
        for gpu, free in enumerate(free_at):
            if gpu in taken:
                continue
            if free > 0:
                self._events.append((free, GPU_FREE, gpu))
            else:
                self._bare.append(gpu)
                self._idle_gpus += 1
        self._events.sort()
        for task, count in enumerate(missing):
            if count == 0:
                m = self._instance.model[task]
                self._lines[self._order.line[task]].append(self._order.rank[task])
                self._ready[m] += 1
                self._ready_s[m] += self._instance.seconds[task]
        for line in self._lines:
            line.sort()
        return missing

    def _place(self, m: int, gpus: Sequence[int], free: float, switch_s: float) -> int:
        self._placed.append(m)
        self._sets.append(tuple(sorted(gpus)))
        self._free.append(free)
        if free > self._now:
            self._loading[m].append(free)
        self._switch.append(switch_s)
        self._served.append(0.0)
        self._slow.append(1.0 / min(self._instance.problem.gpus[g].speed for g in gpus))
        self._copies[m] += 1
        self._used.append(False)
        self._before.append([self._last[g] for g in self._sets[-1]])
        for gpu in gpus:
            self._last[gpu] = len(self._placed) - 1
        return len(self._placed) - 1

    def _give_up(self, placement: int) -> None:
        self._copies[self._placed[placement]] -= 1
        self._bare.extend(self._sets[placement])
        if not self._used[placement]:
            for gpu, before in zip(self._sets[placement], self._before[placement], strict=True):
                self._last[gpu] = before

    def _is_intact(self, m: int, gpus: Sequence[int]) -> bool:
        """Whether the model was given up on just these GPUs, and nothing was loaded there since."""
        last, *others = {self._last[g] for g in gpus}
        return not others and last >= 0 and self._placed[last] == m and len(self._sets[last]) == len(gpus)

    def _unload_s(self, gpu: int) -> float:
        last = self._last[gpu]
        return self._instance.unload[self._placed[last]] if last >= 0 else 0.0

    def _fits(self, m: int, gpu: int) -> bool:
        memory = self._instance.problem.gpus[gpu].memory_gb
        return memory is None or memory >= self._instance.problem.models[m].memory_gb
