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

from gswarm.scheduler.strategies.account import GPU_FREE, Account
from gswarm.scheduler.strategies.instance import NOTHING, Instance
from gswarm.scheduler.strategies.policy import Policy

HUNGRY = 3
"""A model with fewer ready tasks a copy is fed: those go first that the tasks wait for that it would get next."""
PAUSE = 0.002
"""Of the target: for so long what is idle stays so once nothing was worth a load, unless more becomes idle."""


class Pass(Account):
    """One run of a policy over an instance; used once."""

    def __init__(self, instance: Instance, policy: Policy, *, keep: bool = False) -> None:
        """`keep` the runs, for `plan`; a search that only asks for the makespan does without."""
        super().__init__(instance, instance.order(policy.urgency), keep=keep)
        self._policy = policy
        weights = policy.weights or [1.0] * len(instance.width)
        self._weights = [
            w * unlocks * float(k ** (1.0 + policy.wide))
            for w, unlocks, k in zip(weights, instance.unlocks, instance.width, strict=True)
        ]
        """Of a model's need in seconds of one placement."""
        self._loads = 0
        self._refused: set[int] = set()
        """Models that cannot be loaded ahead now."""
        self._has_lost = False
        """Whether it cannot end before `stop`."""
        self._owed = 0.0
        """GPU-seconds that what is loaded takes after its tasks: none, but where time is reversed."""
        self._tail = [0.0] * len(instance.width)
        """Per model, for how long before the end none of its tasks runs."""

    def run(self, stop: float = math.inf) -> float:
        """The makespan; `stop` or more as soon as it cannot be less."""
        instance, ready, idle, placed, events = self._instance, self._ready, self._idle, self._placed, self._events
        model, seconds, width = instance.model, instance.seconds, instance.width
        rank, by_rank, line_of = self._order.rank, self._order.by_rank, self._order.line
        succ_first, succs, quotas, served = instance.succ_first, instance.succs, self._policy.quotas, self._served
        used, lines, lines_of, copies = self._used, self._lines, self._fed, self._copies
        ready_s, left_s, free, switch, slow = self._ready_s, self._left_s, self._free, self._switch, self._slow
        keep, where = self._keep, self._where
        start_s, end_s, switch_s = self._start_s, self._end_s, self._switch_s

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
        times = (self._now, 0.0) if self._is_intact(m, gpus) else self._switched(m, gpus)
        return self._place(m, gpus, *times)

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
