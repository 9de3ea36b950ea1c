"""Greedy batching of a whole problem: each placement drains its model's ready tasks, then the neediest model is loaded.

A model's need counts by what follows its work. Its tasks go by what must follow them, but those first that feed a model
that is about to run dry: "work in next queue" of Panwalkar, Iskander, "A survey of scheduling rules", Operations Research
25 (1977).

One pass over virtual time, O(tasks log tasks). A `Policy` says how decisions are weighed; `offline` runs a few, or searches
for a better one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from gswarm.scheduler.plan import Plan, from_columns
from gswarm.scheduler.strategies.instance import NOTHING, Instance
from gswarm.scheduler.strategies.policy import Policy

GPU_FREE, PLACEMENT_FREE = -1, -2
HUNGRY = 3
"""A model with fewer ready tasks a copy is fed: those go first that the tasks wait for that it would get next."""
PAUSE = 0.002
"""Of the target: for so long what is idle stays so once nothing was worth a load, unless more becomes idle."""


class Pass:
    """One run of a policy over an instance; used once."""

    def __init__(self, instance: Instance, policy: Policy, *, keep: bool = False) -> None:
        """`keep` the runs, for `plan`; a search that only asks for the makespan does without."""
        self._instance, self._policy, self._keep = instance, policy, keep
        count, gpus, tasks = len(instance.width), len(instance.problem.gpus), len(instance.model)
        weights = policy.weights or [1.0] * count
        self._weights = [
            w * unlocks * float(k ** (1.0 + policy.wide))
            for w, unlocks, k in zip(weights, instance.unlocks, instance.width, strict=True)
        ]
        """Of a model's need in seconds of one placement."""
        self._order = instance.order(policy.urgency)
        self._lines: list[list[int]] = [[] for _ in self._order.lines]
        """Heaps of ranks of ready tasks."""
        self._fed: list[list[tuple[int, list[int]]]] = [[] for _ in range(count)]
        """Per model, its lines with whom they feed."""
        for (m, fed), line in zip(self._order.lines, self._lines, strict=True):
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
        self._loads = 0
        self._has_lost = False
        """Whether it cannot end before `stop`."""
        self._owed = 0.0
        """GPU-seconds that what is loaded takes after its tasks: none, but where time is reversed."""
        self._tail = [0.0] * count
        """Per model, for how long before the end none of its tasks runs."""
        self._refused: set[int] = set()
        """Models that cannot be loaded ahead now."""
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

    def run(self, stop: float = math.inf) -> float:
        """The makespan; `stop` or more as soon as it cannot be less."""
        instance, ready, idle, placed, events = self._instance, self._ready, self._idle, self._placed, self._events
        model, seconds, rank, by_rank, width = (
            instance.model,
            instance.seconds,
            self._order.rank,
            self._order.by_rank,
            instance.width,
        )
        succ_first, succs, quotas, served = instance.succ_first, instance.succs, self._policy.quotas, self._served
        used, lines, line_of, lines_of, copies = self._used, self._lines, self._order.line, self._fed, self._copies
        ready_s, left_s, free, switch, slow = self._ready_s, self._left_s, self._free, self._switch, self._slow
        keep, start_s, end_s, switch_s, where = (
            self._keep,
            self._start_s,
            self._end_s,
            self._switch_s,
            self._where,
        )

        def begin(placement: int, now: float) -> None:
            m = placed[placement]
            first, chosen = tasks, no_line
            for fed, line in lines_of[m]:
                if line:
                    top = line[0]
                    if ready[fed] < HUNGRY * copies[fed]:
                        top -= tasks
                    if top < first:
                        first, chosen = top, line
            task = by_rank[heappop(chosen)]
            ready[m] -= 1
            took = seconds[task]
            ready_s[m] -= took
            left_s[m] -= took
            served[placement] += took
            start = free[placement]
            if start < now:
                start = now
            end = start + took * slow[placement]
            if keep:
                start_s[task], end_s[task], where[task] = start, end, placement
                switch_s[task] = switch[placement]
            switch[placement] = 0.0
            free[placement] = end
            used[placement] = True
            heappush(events, (end, task, placement))

        missing = self._set_up()
        left = tasks = len(missing)
        no_line: list[int] = []
        calm, again, pause = 0, 0.0, PAUSE * instance.target
        touched: Iterable[int] = range(len(width))
        while True:
            for m in touched:
                while ready[m] and idle[m]:
                    self._idle_gpus -= width[m]
                    begin(idle[m].pop(), self._now)
            self._refused.clear()
            while self._idle_gpus > (calm if self._now < again and events else 0):
                chosen = self._choose(stop)
                loaded = None if chosen is None else self._load(chosen)
                if chosen is None or (loaded is None and ready[chosen]):
                    calm, again = self._idle_gpus, self._now + pause
                    break
                if loaded is None:
                    self._refused.add(chosen)
                elif ready[chosen]:
                    self._idle_gpus -= width[chosen]
                    begin(loaded, self._now)
                else:
                    idle[chosen].append(loaded)
            if self._has_lost:
                return stop
            if not events:
                return self._now if not left else math.inf
            self._now, task, placement = heappop(events)
            now = self._now
            if now >= stop:
                return stop
            touched = []
            while True:
                if task >= 0:
                    left -= 1
                    for position in range(succ_first[task], succ_first[task + 1]):
                        successor = succs[position]
                        missing[successor] -= 1
                        if not missing[successor]:
                            m = model[successor]
                            heappush(lines[line_of[successor]], rank[successor])
                            ready[m] += 1
                            ready_s[m] += seconds[successor]
                            touched.append(m)
                    m = placed[placement]
                    if quotas and left_s[m] > 0 and served[placement] >= quotas.get(placement, math.inf):
                        self._give_up(placement)
                        self._idle_gpus += width[m]
                    elif ready[m]:
                        begin(placement, now)
                    elif left_s[m] <= NOTHING:
                        self._give_up(placement)
                        self._idle_gpus += width[m]
                    else:
                        idle[m].append(placement)
                        self._idle_gpus += width[m]
                elif task == GPU_FREE:
                    self._bare.append(placement)
                    self._idle_gpus += 1
                else:
                    m = placed[placement]
                    idle[m].append(placement)
                    self._idle_gpus += width[m]
                    touched.append(m)
                if not events or events[0][0] > now:
                    break
                _, task, placement = heappop(events)

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

    # Which model is loaded next

    def _choose(self, stop: float) -> int | None:
        """The model to load now; None: none is worth it, or GPUs are kept for a wide one."""
        policy, width, now, left_s, ready = self._policy, self._instance.width, self._now, self._left_s, self._ready
        # Ahead of ready tasks only while something runs, on GPUs that nothing needs.
        bare = len(self._bare) if policy.prefetch and self._events else 0
        refused, idle_gpus, gpus = self._refused, self._idle_gpus, len(self._last)
        candidates, narrowest, rest = [], gpus + 1, self._owed
        for m, k in enumerate(width):
            left = left_s[m]
            rest += left * k
            if (ready[m] or (k <= bare and left > NOTHING)) and m not in refused:
                candidates.append(m)
                if k < narrowest:
                    narrowest = k
        if narrowest > idle_gpus:
            return None
        if self._instance.uniform and rest > gpus * (stop - now):
            self._has_lost = True
            return None
        if policy.forced and (forced := policy.forced.get(self._loads)) in candidates and width[forced] <= idle_gpus:
            return forced
        for m, frees in enumerate(self._loading):
            if frees:
                self._loading[m] = frees = [free for free in frees if free > now]
                rest += width[m] * (sum(frees) - now * len(frees))
        target = max(policy.stretch * self._instance.target, now + policy.headroom * rest / gpus)
        pressure = rest / (gpus * max(target - now, NOTHING))
        best, best_need, fitting, fitting_need = None, 0.0, None, 0.0
        for m in candidates:
            need = self._need(m, target, pressure)
            if need > best_need:
                best, best_need = m, need
            if need > fitting_need and width[m] <= idle_gpus:
                fitting, fitting_need = m, need
        return fitting if best == fitting or fitting_need * policy.hold >= best_need else None

    def _need(self, m: int, target: float, pressure: float) -> float:
        """How much another copy of a model is needed, GPU-seconds; 0: not worth its load.

        `pressure` is the share of what the GPUs can do until the target that is left to do.
        """
        ready, copies, policy = self._ready_s[m], self._copies[m], self._policy
        load, frees, now = self._instance.load[m], self._loading[m], self._now
        left = self._left_s[m] + (sum(frees) - now * len(frees) if frees else 0.0)
        short = left - copies * max(target - now - self._tail[m], 0.0)
        if copies:
            if load * copies >= left:
                return 0.0
            dear = 0.0
            if pressure > policy.slack:
                dear = min(1.0, (pressure - policy.slack) / (1 - policy.slack))
            if short <= policy.shortfall * load * copies * dear:
                if pressure < policy.idle:
                    return NOTHING * (1 + left / copies)
                short = ready / (copies + 1)
                if short <= policy.spread * load or not self._ready[m]:
                    return 0.0
        soon = ready if ready < short else short
        # Never nothing while tasks are ready: those of no length have to run too.
        return max(self._weights[m] * (soon + policy.future * (short - soon)), NOTHING)

    def _load(self, m: int) -> int | None:
        """Load a model on idle GPUs; None where that would cost others too much."""
        gpus = self._take(m)
        if gpus is None:
            return None
        self._loads += 1
        last, *others = {self._last[g] for g in gpus}
        if not others and last >= 0 and self._placed[last] == m and len(self._sets[last]) == len(gpus):
            return self._place(m, gpus, self._now, 0.0)  # given up, but nothing was loaded there since
        return self._place(m, gpus, *self._switched(m, gpus))

    def _switched(self, m: int, gpus: Sequence[int]) -> tuple[float, float]:
        """When GPUs that something is loaded on now can run it, and the seconds that its first task is charged."""
        switch_s = self._instance.load[m] + max(self._unload_s(g) for g in gpus)
        return self._now + switch_s, switch_s

    def _take(self, m: int) -> list[int] | None:
        count, instance = self._instance.width[m], self._instance
        bare = [g for g in self._bare if instance.uniform or self._fits(m, g)]
        if len(bare) < count:
            if not self._ready[m]:
                return None  # what is loaded ahead makes nothing leave, or two models might make room for ever
            bare += self._break_up(m, count - len(bare))
            if len(bare) < count:
                return None
        if len(bare) > count:
            # Faster ones first, then those that are unloaded soonest.
            bare = sorted(bare, key=lambda g: (-instance.problem.gpus[g].speed, self._unload_s(g), g))
        chosen = bare[:count]
        self._bare = [g for g in self._bare if g not in chosen]
        return chosen

    def _unload_s(self, gpu: int) -> float:
        last = self._last[gpu]
        return self._instance.unload[self._placed[last]] if last >= 0 else 0.0

    def _fits(self, m: int, gpu: int) -> bool:
        memory = self._instance.problem.gpus[gpu].memory_gb
        return memory is None or memory >= self._instance.problem.models[m].memory_gb

    def _break_up(self, m: int, count: int) -> list[int]:
        """Give up the idle placements that are needed least until `count` GPUs more can be had; else none of them."""
        target = max(self._instance.target, self._now)
        patience = self._policy.patience if self._events else 0.0  # while nothing runs, waiting brings nothing
        limit = self._need(m, target, 1.0) / patience if patience else math.inf
        choices: list[tuple[float, int]] = []
        for other, placements in enumerate(self._idle):
            if other == m or not placements:
                continue
            short = max(0.0, self._left_s[other] - (self._copies[other] - 1) * (target - self._now))
            if self._copies[other] == 1 and self._left_s[other] > NOTHING:
                short += self._policy.reload * self._instance.load[other]
            loss = self._weights[other] * short
            if loss <= limit:
                choices += [(loss, placement) for placement in placements]
        choices.sort()
        chosen: list[int] = []
        gained: list[int] = []
        for _, placement in choices:
            chosen.append(placement)
            gained += [g for g in self._sets[placement] if self._fits(m, g)]
            if len(gained) >= count:
                break
        else:
            return []
        for placement in chosen:
            self._idle[self._placed[placement]].remove(placement)
            self._give_up(placement)
        return gained
