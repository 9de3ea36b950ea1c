"""`online` on GPUs that several models share: its first three rules and its bound, for sites in place of whole GPUs.

Simpler than there: what waits for others does not count, nothing is loaded ahead for it, and a priority goes first on its
model's sites only.

1. *Drain.* An idle site starts the next task of its model: by rank, then earliest deadline, then oldest request.
2. *Load.* A model with ready tasks and no site gets one where it fits beside what is busy. One whose clearing time is
   above `demand_weight` S gets another where nothing has to leave, and above `switch_weight` S also where something idle
   leaves; S is what it costs there. What is asked for least a site leaves first, and the tightest fit is taken.
3. *Balance.* A model that would take `balance_weight` S longer to clear with one more site than another with one less
   claims GPUs from it: what is in the way there starts nothing more, and leaves.

No task is passed over more than `max_passed` times, as in `online.py`: from half of that on, the oldest one claims GPUs
from anyone, and at the end nothing else starts.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from gswarm.scheduler.strategies.sharing import Fit, Sharing, Site, own_switch_s
from gswarm.scheduler.strategies.turns import Turns
from gswarm.scheduler.strategy import Job, Model


class Waiting:
    """A ready task."""

    __slots__ = ("job", "number", "started")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.number = -1
        self.started = False


class Line:
    """The ready tasks of a model."""

    __slots__ = ("count", "heap", "work")

    def __init__(self) -> None:
        self.heap: list[tuple[int, float, float, int, Waiting]] = []
        self.count, self.work = 0, 0.0


class Claim:
    """GPUs that a model will be loaded on as soon as what is in the way has ended."""

    __slots__ = ("fits", "is_due", "leaving", "model", "why")

    def __init__(self, model: Model, fits: list[Fit], why: str, *, is_due: bool) -> None:
        self.model, self.fits, self.why, self.is_due = model, fits, why, is_due
        self.leaving = dict.fromkeys(site for fit in fits for site in fit.leaving)


class Crowd(Sharing):
    """See the module's docstring. Weights are in switch times S of the model in question."""

    name = "online"

    def __init__(
        self,
        *,
        wait_weight: float = 1.0,
        switch_weight: float = 2.0,
        demand_weight: float = 0.25,
        balance_weight: float = 2.0,
        max_passed: int | None = None,
        urgency: Mapping[str, float] | None = None,
        reasons: bool = False,
    ) -> None:
        """`urgency`: by task, to go by it, highest first, in place of the age of the request."""
        super().__init__(reasons=reasons)
        self.wait_weight, self.switch_weight = wait_weight, switch_weight
        self.demand_weight, self.balance_weight = demand_weight, balance_weight
        self._max_passed, self._urgency = max_passed, urgency
        self._arrived: dict[str, float] = {}
        self._lines: dict[str, Line] = {}
        """Of models with ready tasks."""
        self._turns: Turns[Waiting] = Turns()
        self._claim: Claim | None = None
        self._passed = 0
        """How often the task that is being started was passed over."""

    @property
    def max_passed(self) -> int:
        """How often a ready task may be passed over."""
        return self._turns.allowed(len(self.spots)) if self._max_passed is None else self._max_passed

    # Ready tasks

    def is_ready(self, now: float, job: Job) -> None:
        """Into its model's line."""
        model, line = self.models[job.model], self._lines.setdefault(job.model, Line())
        order = self._asked_at(job, now)
        if self._urgency is not None:
            order = -self._urgency.get(job.id, 0.0)
        elif not job.needs:
            order -= self.wait_weight * own_switch_s(model, self.host)
        waiting = Waiting(job)
        self._turns.join(waiting)
        # A deadline that cannot be met any more is none.
        due = job.deadline if now + self.run_s(job) <= job.deadline else float("inf")
        heapq.heappush(line.heap, (-job.rank, due, order, waiting.number, waiting))
        line.count += 1
        line.work += self.run_s(job)

    def _asked_at(self, job: Job, now: float) -> float:
        """When its request was made, for it and what needs it."""
        return self._arrived.setdefault(job.request or job.id, now - job.waited_s)

    def _next(self, now: float, line: Line) -> Waiting:
        heap = line.heap
        while True:
            rank, due, order, number, waiting = heap[0]
            if waiting.started:
                heapq.heappop(heap)
            elif now + self.run_s(waiting.job) > due:
                heapq.heapreplace(heap, (rank, float("inf"), order, number, waiting))
            else:
                return waiting

    def _start(self, now: float, site: Site, waiting: Waiting, why: str) -> None:
        line = self._lines[site.model]
        self._passed = self._turns.leave(waiting)
        waiting.started = True
        line.count -= 1
        line.work -= self.run_s(waiting.job)
        if not line.count:
            del self._lines[site.model]
        self.give(now, site, waiting.job, why)

    def passed(self, job: Job) -> int:
        """Of the task that is being started."""
        return self._passed

    def passed_over(self, job: str) -> int:
        """Not told apart: the most that any is."""
        return self._turns.most_passed

    # Decisions

    def decide(self, now: float) -> None:
        """See the module's docstring."""
        if not self._lines:
            self._claim = None
            return
        self._press(now)
        self._carry_out(now)
        self._drain(now)
        if self._turns.most_passed < self.max_passed:
            self._load(now)
            self._balance(now)

    def _drain(self, now: float) -> None:
        for name in list(self._lines):
            for site in list(self.sites.get(name, {}).values()):
                if name not in self._lines:
                    break
                if not site.is_idle or self._is_claimed(site):
                    continue
                oldest, passed = self._turns.oldest, self._turns.most_passed
                if oldest is not None and oldest.job.model == name and 2 * passed >= self.max_passed:
                    self._start(now, site, oldest, "passed over most")
                elif passed < self.max_passed:
                    waiting = self._next(now, self._lines[name])
                    self._start(now, site, waiting, f"{name} is loaded there")
                else:
                    break

    def _is_claimed(self, site: Site) -> bool:
        return self._claim is not None and site in self._claim.leaving

    def _clear_s(self, name: str, change: int = 0) -> float:
        """How long the model's sites take to clear what is ready, with so many more."""
        sites = len(self.sites.get(name, ())) + change
        work = self._lines[name].work if name in self._lines else 0.0
        return work / sites if sites > 0 else float("inf")

    def _load(self, now: float) -> None:
        order = sorted(self._lines, key=lambda m: (bool(self.sites.get(m)), -self._lines[m].work))
        for name in order:
            model = self.models[name]
            while True:
                sites, clear_s = len(self.sites.get(name, ())), self._clear_s(name)
                if sites >= self._lines[name].count + sum(bool(s.running) for s in self.sites.get(name, {}).values()):
                    break  # as many as there are tasks
                gives_way = not sites or clear_s > self.switch_weight * self.host.load_s(model)
                fits = self._fits(model, self._may_leave if gives_way else lambda site: False)
                if fits is None:
                    break
                switch_s = self.switch_s(model, fits)
                weight = self.switch_weight if any(fit.leaving for fit in fits) else self.demand_weight
                if sites and clear_s <= weight * switch_s:
                    break
                self.bring_up(now, model, fits, f"{clear_s:.1f} s of work a site, {switch_s:.1f} s to load it here")

    def _may_leave(self, site: Site) -> bool:
        return site.is_idle and site.model not in self._lines and not self._is_claimed(site)

    def _keep(self, site: Site) -> tuple[float, float]:
        return (self.asked[site.model] / max(1, len(self.sites[site.model])), site.used)

    def _fits(self, model: Model, may_leave: Callable[[Site], bool]) -> list[Fit] | None:
        """On the GPUs where least has to leave; then the tightest, which leaves room for what is large."""
        claimed = {fit.spot.number for fit in self._claim.fits} if self._claim is not None else ()
        found: list[Fit] = []
        for spot in self.spots.values():
            if spot.number not in claimed and not any(s.model == model.name for s in spot.sites.values()):
                fit = self.fit(model, spot, may_leave, self._keep)
                if fit is not None:
                    found.append(fit)
        if len(found) < model.width:
            return None
        found.sort(key=lambda f: (max([self._keep(s)[0] for s in f.leaving], default=0.0), f.free, f.spot.number))
        return found[: model.width]

    # Claims

    def _balance(self, now: float) -> None:
        if self._claim is not None:
            return
        worst, most = "", self.balance_weight
        for name in self._lines:
            switch_s = own_switch_s(self.models[name], self.host)
            clear_s = self._clear_s(name, 1)
            if clear_s > most * switch_s and len(self.sites.get(name, ())) < self._lines[name].count:
                worst, most = name, clear_s / switch_s if switch_s else float("inf")
        if not worst:
            return
        model = self.models[worst]
        left_s = self._clear_s(worst, 1) - self.balance_weight * own_switch_s(model, self.host)

        def may_leave(site: Site) -> bool:
            if site.model == worst or not site.server or not site.ready:
                return False
            spare = len(self.sites[site.model]) > 1 and self._clear_s(site.model, -1) < left_s
            return spare or (site.is_idle and site.model not in self._lines)

        self._claims(now, model, may_leave, f"{left_s:.1f} s of work a site more than others", is_due=False)

    def _press(self, now: float) -> None:
        """See to the oldest task if it is due."""
        oldest, passed = self._turns.oldest, self._turns.most_passed
        if oldest is None or 2 * passed < self.max_passed:
            if self._claim is not None and self._claim.is_due:
                self._claim = None
            return
        name = oldest.job.model
        if self._claim is not None and self._claim.model.name == name:
            return
        self._claim = None
        if not self.sites.get(name):
            why = f"{oldest.job.id} is due: passed over {passed} times"
            self._claims(now, self.models[name], lambda site: site.ready, why, is_due=True)

    def _claims(self, now: float, model: Model, may_leave: Callable[[Site], bool], why: str, *, is_due: bool) -> None:
        found: list[Fit] = []
        for spot in self.spots.values():
            if not any(s.model == model.name for s in spot.sites.values()):
                fit = self.fit(model, spot, may_leave, lambda site: (0.0 if site.is_idle else 1.0, site.ends))
                if fit is not None:
                    found.append(fit)
        if len(found) >= model.width:
            found.sort(key=lambda f: (max([s.ends for s in f.leaving if not s.is_idle], default=now), f.spot.number))
            self._claim = Claim(model, found[: model.width], why, is_due=is_due)
            self._carry_out(now)

    def _carry_out(self, now: float) -> None:
        claim = self._claim
        if claim is None:
            return
        if claim.model.name not in self._lines:
            self._claim = None
        elif all(site.is_idle for site in claim.leaving):
            self._claim = None
            self.bring_up(now, claim.model, claim.fits, claim.why)
