"""Greedy batching of a whole problem: each placement drains its model's ready tasks, then the neediest model is loaded.

One pass over virtual time, O(tasks log tasks). A `Policy` says how decisions are weighed; `strategies/offline.py` runs one,
or searches for a better one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.plan import Plan, from_columns
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Problem

NOTHING = 1e-9
"""Seconds of work that count as none, for sums of floats."""
GPU_FREE, PLACEMENT_FREE = -1, -2
MANY, STEPS = 20_000, 32
"""Beyond so many tasks, how finely what must follow them is told apart."""
HEADROOM = 1.02
"""How much later than a perfect packing of what is left the end is expected."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How to weigh decisions. The defaults need no tuning; times are seconds."""

    shortfall: float = 0.5
    """Another copy is loaded for work that those there cannot do until the target, beyond this many loads each."""
    future: float = 0.6
    """Weight of work whose predecessors still run, against ready work."""
    spread: float = 5.0
    """Or for ready work, if each copy would have more than this many loads of it."""
    patience: float = 0.6
    """An idle placement is given up only for a need this many times its own."""
    hold: float = 1.0
    """GPUs are kept idle for a wide model that does not fit yet, unless another's need times this exceeds its."""
    prefetch: bool = False
    """Load models before their first tasks are ready."""
    wide: float = 0.0
    """Exponent of a model's width in its need, beyond the GPU-seconds themselves: above 0 wide models go first."""
    weights: tuple[float, ...] = ()
    """Of each model's need; empty: all 1."""
    urgency: tuple[float, ...] = ()
    """Of each model's run times in what follows a task, for the order of tasks; empty: all 1."""
    forced: Mapping[int, int] = field(default_factory=dict)
    """The n-th load is of this model, if it can be."""
    quotas: Mapping[int, float] = field(default_factory=dict)
    """The n-th placement is given up after this much work."""


class Instance:
    """A problem as plain lists, made once and run under many policies."""

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
        self.target = lower_bound(problem, windows=False).value
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


class Pass:
    """One run of a policy over an instance; used once."""

    def __init__(self, instance: Instance, policy: Policy, *, keep: bool = False) -> None:
        """`keep` the runs, for `plan`; a search that only asks for the makespan does without."""
        self._instance, self._policy, self._keep = instance, policy, keep
        count, gpus, tasks = len(instance.width), len(instance.problem.gpus), len(instance.model)
        weights = policy.weights or [1.0] * count
        self._weights = [w * float(k ** (1.0 + policy.wide)) for w, k in zip(weights, instance.width, strict=True)]
        """Of a model's need in seconds of one placement."""
        self._rank, self._by_rank = instance.ranks(policy.urgency)
        self._ready: list[list[int]] = [[] for _ in range(count)]
        """Per model a heap of ranks."""
        self._ready_s = [0.0] * count
        self._left_s = instance.work.copy()
        """Work not started yet, ready or not."""
        self._idle: list[list[int]] = [[] for _ in range(count)]
        """Idle placements of each model."""
        self._copies = [0] * count
        self._bare: list[int] = []
        """Idle GPUs that belong to no placement."""
        self._idle_gpus = 0
        self._last = [-1] * gpus
        """Placement that each GPU was last given to, in the plan's view: one that never ran a task is not in the plan."""
        self._placed: list[int] = []
        """Model of each placement."""
        self._sets: list[tuple[int, ...]] = []
        self._free: list[float] = []
        """When each placement is loaded."""
        self._switch: list[float] = []
        """Load that its next task is charged."""
        self._before: list[list[int]] = []
        """What its GPUs had last before each placement."""
        self._used: list[bool] = []
        self._served: list[float] = []
        self._slow: list[float] = []
        """What run times are multiplied by."""
        self._loads = 0
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
            self._rank,
            self._by_rank,
            instance.width,
        )
        succ_first, succs, quotas, served = instance.succ_first, instance.succs, self._policy.quotas, self._served
        used = self._used
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
            task = by_rank[heappop(ready[m])]
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
            used[placement] = True
            heappush(events, (end, task, placement))

        missing = self._set_up()
        left = len(missing)
        touched: Iterable[int] = range(len(width))
        while True:
            for m in touched:
                while ready[m] and idle[m]:
                    self._idle_gpus -= width[m]
                    begin(idle[m].pop(), self._now)
            while self._idle_gpus:
                chosen = self._choose(stop)
                if chosen is None or (loaded := self._load(chosen)) is None:
                    break
                if not ready[chosen]:
                    idle[chosen].append(loaded)
                    break
                self._idle_gpus -= width[chosen]
                begin(loaded, self._now)
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
                            heappush(ready[m], rank[successor])
                            ready_s[m] += seconds[successor]
                            touched.append(m)
                    m = placed[placement]
                    if quotas and left_s[m] > 0 and served[placement] >= quotas.get(placement, math.inf):
                        self._give_up(placement)
                        self._idle_gpus += width[m]
                    elif ready[m]:
                        begin(placement, now)
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
                self._ready[m].append(self._rank[task])
                self._ready_s[m] += self._instance.seconds[task]
        for ready in self._ready:
            ready.sort()
        return missing

    def _place(self, m: int, gpus: Sequence[int], free: float, switch_s: float) -> int:
        self._placed.append(m)
        self._sets.append(tuple(sorted(gpus)))
        self._free.append(free)
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
        width, now, left_s = self._instance.width, self._now, self._left_s
        rest = sum(s * w for s, w in zip(left_s, width, strict=True))
        gpus = len(self._last)
        if rest <= NOTHING and not any(self._ready):
            return None
        if self._instance.uniform and rest > gpus * (stop - now):
            return None  # this pass has lost already; what runs is followed to `stop`
        target = max(self._instance.target, now + HEADROOM * rest / gpus)
        forced = self._policy.forced.get(self._loads)
        if forced is not None and self._could(forced) and (self._ready[forced] or self._policy.prefetch):
            return forced
        best, best_need, fitting, fitting_need = None, 0.0, None, 0.0
        for m in range(len(width)):
            need = self._need(m, target)
            if need > best_need:
                best, best_need = m, need
            if need > fitting_need and width[m] <= self._idle_gpus:
                fitting, fitting_need = m, need
        if best is None or best == fitting:
            return best
        return fitting if fitting is not None and fitting_need * self._policy.hold >= best_need else None

    def _could(self, m: int) -> bool:
        return (self._left_s[m] > NOTHING or bool(self._ready[m])) and self._instance.width[m] <= self._idle_gpus

    def _need(self, m: int, target: float) -> float:
        """How much another copy of a model is needed, GPU-seconds; 0: not worth its load."""
        left, ready, copies, policy = self._left_s[m], self._ready_s[m], self._copies[m], self._policy
        if not self._ready[m] and (copies or not policy.prefetch or left <= NOTHING):
            return 0.0
        load = self._instance.load[m]
        short = left - copies * (target - self._now)
        if copies and short <= policy.shortfall * load * copies:
            short = ready / (copies + 1)
            if short <= policy.spread * load:
                return 0.0
        now = min(ready, short)
        # Never nothing while tasks are ready: those of no length have to run too.
        return max(self._weights[m] * (now + policy.future * (short - now)), NOTHING)

    def _load(self, m: int) -> int | None:
        """Load a model on idle GPUs; None where that would cost others too much."""
        gpus = self._take(m)
        if gpus is None:
            return None
        self._loads += 1
        last, *others = {self._last[g] for g in gpus}
        if not others and last >= 0 and self._placed[last] == m and len(self._sets[last]) == len(gpus):
            return self._place(m, gpus, self._now, 0.0)  # given up, but nothing was loaded there since
        switch_s = self._instance.load[m] + max(self._unload_s(g) for g in gpus)
        return self._place(m, gpus, self._now + switch_s, switch_s)

    def _take(self, m: int) -> list[int] | None:
        count, instance = self._instance.width[m], self._instance
        bare = [g for g in self._bare if instance.uniform or self._fits(m, g)]
        if len(bare) < count:
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
        limit = self._need(m, target) / patience if patience else math.inf
        choices: list[tuple[float, int]] = []
        for other, placements in enumerate(self._idle):
            if other == m or not placements:
                continue
            short = max(0.0, self._left_s[other] - (self._copies[other] - 1) * (target - self._now))
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
