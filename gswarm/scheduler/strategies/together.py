"""`fifo`, `baseline`, `affinity` and `static` on GPUs that several models share; see the files of these names."""

from __future__ import annotations

from collections import deque

from gswarm.scheduler.strategies.sharing import Fit, Set, Sharing, Site, oldest_use
from gswarm.scheduler.strategy import Job, Model


class InOrder(Sharing):
    """First come: the head of the line is given something, and all others wait for it."""

    def __init__(self, *, reasons: bool = False) -> None:
        super().__init__(reasons=reasons)
        self.ready: deque[Job] = deque()

    def is_ready(self, now: float, job: Job) -> None:
        """To the end of the line."""
        self.ready.append(job)

    def decide(self, now: float) -> None:
        """Serve the head of the line while there is a site for it."""
        while self.ready:
            site, why = self.choose(now, self.ready[0])
            if site is None:
                return
            self.give(now, site, self.ready.popleft(), why)

    def choose(self, now: float, job: Job) -> tuple[Site | None, str]:
        """A site for the task, brought up if need be, and why; None: there is none now."""
        raise NotImplementedError

    def first_fit(self, now: float, model: Model) -> Site | None:
        """On the first GPUs that it fits on; what has not been used for longest leaves."""
        found: list[Fit] = []
        for spot in self.spots.values():
            if any(s.model == model.name and not s.is_idle for s in spot.sites.values()):
                continue
            fit = self.fit(model, spot, lambda site: site.is_idle, oldest_use)
            if fit is not None:
                found.append(fit)
                if len(found) == model.width:
                    break
        else:
            return None
        devices = tuple(sorted(fit.spot.device.id for fit in found))
        there = self.sites.get(model.name, {}).get(devices)
        return there if there is not None else self.bring_up(now, model, found, "the first that it fits on")


class Fifo(InOrder):
    """What a GPU holds does not matter to it."""

    name = "fifo"

    def choose(self, now: float, job: Job) -> tuple[Site | None, str]:
        """The first GPUs that it fits on."""
        return self.first_fit(now, self.models[job.model]), "the first that it fits on"


class Baseline(InOrder):
    """An idle site of the model, else as `fifo`."""

    name = "baseline"

    def choose(self, now: float, job: Job) -> tuple[Site | None, str]:
        """Where the model is idle, else the first GPUs that it fits on."""
        if (site := self.idle_site(job.model)) is not None:
            return site, f"{job.model} is loaded there"
        return self.first_fit(now, self.models[job.model]), f"{job.model} is idle nowhere: the first that it fits on"


class Affinity(Sharing):
    """Each ready task goes where it ends first: behind others on a site of its model, or on a new one that fits now."""

    name = "affinity"

    def __init__(self, *, reasons: bool = False) -> None:
        super().__init__(reasons=reasons)
        self._lines: dict[str, deque[tuple[int, Job]]] = {}
        self._count = 0

    def is_ready(self, now: float, job: Job) -> None:
        """To the end of its model's line."""
        self._count += 1
        self._lines.setdefault(job.model, deque()).append((self._count, job))

    def decide(self, now: float) -> None:
        """Give away what can be; a model that is nowhere and fits nowhere waits."""
        waits: set[str] = set()
        while left := [model for model in self._lines if model not in waits]:
            model = min(left, key=lambda m: self._lines[m][0][0])
            if (site := self._first_to_end(now, self.models[model])) is None:
                waits.add(model)
                continue
            self.give(now, site, self._lines[model].popleft()[1], "ends first there")
            if not self._lines[model]:
                del self._lines[model]

    def _first_to_end(self, now: float, model: Model) -> Site | None:
        best = min(self.sites.get(model.name, {}).values(), key=lambda site: max(site.ends, now), default=None)
        found = []
        for spot in self.spots.values():
            if not any(s.model == model.name for s in spot.sites.values()):
                fit = self.fit(model, spot, lambda site: site.is_idle, oldest_use)
                if fit is not None:
                    found.append(fit)
        if len(found) < model.width:
            return best
        # The least to be cleared; then the tightest, which leaves room for what is large.
        found = sorted(found, key=lambda fit: (fit.clear_s, fit.free, fit.spot.number))[: model.width]
        if best is not None and max(best.ends, now) <= now + self.switch_s(model, found):
            return best
        return self.bring_up(now, model, found, "ends first there")


class Static(InOrder):
    """Models have sites of their own by the most work a GPU, as long as the others can share the memory that is left."""

    name = "static"

    def __init__(self, *, reasons: bool = False) -> None:
        super().__init__(reasons=reasons)
        self._mix: dict[str, float] = {}
        self._fixed: dict[str, list[Set]] | None = None
        self._lines: dict[str, deque[Job]] = {}

    def size_to(self, mix: dict[str, float]) -> None:
        """Take in how many GPU-seconds there are of each model."""
        self._mix = mix

    def decide(self, now: float) -> None:
        """Serve each model's line on its sites, and the others in order on what is left."""
        if any(d not in self.spots for m in self.models.values() for d in m.devices):
            return  # what is fixed is sized to all GPUs, also to those that come free later
        if self._fixed is None:
            self._fixed = self._sized()
        waiting, self.ready = self.ready, deque()
        for job in waiting:
            (self._lines.setdefault(job.model, deque()) if job.model in self._fixed else self.ready).append(job)
        for name, line in self._lines.items():
            for devices in self._fixed[name]:
                site = self.sites.get(name, {}).get(devices)
                if line and site is None:
                    fits = [self._on(self.models[name], d) for d in devices]
                    good = [fit for fit in fits if fit is not None]
                    if len(good) < len(devices):
                        continue
                    site = self.bring_up(now, self.models[name], good, f"{name} is fixed there")
                if line and site is not None and not site.running and not site.line:
                    self.give(now, site, line.popleft(), f"{name} is fixed there")
        super().decide(now)

    def _on(self, model: Model, device: str) -> Fit | None:
        return self.fit(model, self.spots[device], self._may_leave, oldest_use)

    def _may_leave(self, site: Site) -> bool:
        return site.is_idle and site.devices not in (self._fixed or {}).get(site.model, ())

    def choose(self, now: float, job: Job) -> tuple[Site | None, str]:
        """Among what is not fixed: where the model is idle, else where it fits."""
        model, why = self.models[job.model], f"{job.model} has no site of its own"
        if (site := self.idle_site(job.model)) is not None:
            return site, why
        found = []
        for device, left in self._left.items():
            if any(s.model == model.name for s in self.spots[device].sites.values()):
                continue
            if left >= model.memory and (fit := self._on(model, device)) is not None:
                found.append(fit)
        if len(found) < model.width:
            return None, why
        return self.bring_up(now, model, found[: model.width], why), why

    def _sized(self) -> dict[str, list[Set]]:
        """The sites of their own. Memory that they leave on each GPU is in `_left`."""
        work = self._mix
        order = sorted(work, key=lambda m: (-work[m] / self.models[m].width, m))
        for count in range(len(order), -1, -1):
            self._left = {d: spot.device.memory for d, spot in self.spots.items()}
            fixed: dict[str, list[Set]] = {}
            if all(self._fix(m, fixed) for m in order[:count]) and self._others_fit(order[count:]):
                break
        grows = set(fixed)
        while grows:
            name = max(sorted(grows), key=lambda m: work[m] / (self.models[m].width * len(fixed[m])))
            before = dict(self._left)
            if not self._fix(name, fixed):
                grows.discard(name)
            elif not self._others_fit(order[count:]):
                self._left = before
                fixed[name].pop()
                grows.discard(name)
        return fixed

    def _others_fit(self, others: list[str]) -> bool:
        return all(self._room(self.models[m]) >= self.models[m].width for m in others)

    def _room(self, model: Model) -> int:
        return sum(left >= model.memory and d in model.devices for d, left in self._left.items())

    def _fix(self, name: str, fixed: dict[str, list[Set]]) -> bool:
        model = self.models[name]
        taken = {d for devices in fixed.get(name, ()) for d in devices}
        good = [d for d, left in self._left.items() if left >= model.memory and d in model.devices and d not in taken]
        if len(good) < model.width:
            return False
        # Where most is left, so that copies and models are spread.
        chosen = sorted(good, key=lambda d: (-self._left[d], self.spots[d].number))[: model.width]
        for d in chosen:
            self._left[d] = self._left[d] - model.memory if self.spots[d].device.shared else -1
        fixed.setdefault(name, []).append(tuple(sorted(chosen)))
        return True
