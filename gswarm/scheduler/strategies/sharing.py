"""What strategies for shared GPUs have in common: several models are on one while its memory lasts, each runs one task.

A *site* is a model on a set of GPUs. A strategy gives ready tasks to sites, each of which runs its own one after the
other, or brings up a new one where the model fits beside what is busy; what is idle there leaves for it, as far as it is
in the way. For planning: it expects that what it asks for is done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from gswarm.scheduler.strategies.memory import Host, unload_s
from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    Device,
    DeviceIs,
    Event,
    HostIs,
    Instruction,
    Job,
    Load,
    Model,
    ModelIs,
    ServerGone,
    ServerIs,
    Start,
    Started,
)

Set = tuple[str, ...]


def oldest_use(site: Site) -> tuple[float, float]:
    """What has not been used for longest leaves first."""
    return (site.used, 0.0)


class Site:
    """See the module's docstring."""

    __slots__ = ("devices", "ends", "line", "model", "ready", "running", "server", "used")

    def __init__(self, model: str, devices: Set, ends: float) -> None:
        self.model, self.devices = model, devices
        self.line: deque[tuple[Job, str]] = deque()
        """What is given to it and does not run yet, and why."""
        self.running = ""
        self.server = ""
        self.ready = False
        self.ends = ends
        """When all that it was given has ended, as far as is known."""
        self.used = 0
        """Number of its last use."""

    @property
    def is_idle(self) -> bool:
        """Whether it could leave at once."""
        return self.ready and not self.running and not self.line


class Spot:
    """A GPU and the sites on it."""

    __slots__ = ("device", "number", "sites")

    def __init__(self, device: Device, number: int) -> None:
        self.device, self.number = device, number
        self.sites: dict[tuple[str, Set], Site] = {}


class Fit:
    """How a model fits on a GPU: what leaves, how much is free then, how long the GPU takes to be rid of it."""

    __slots__ = ("clear_s", "free", "leaving", "spot")

    def __init__(self, spot: Spot, leaving: list[Site], free: int, clear_s: float) -> None:
        self.spot, self.leaving, self.free, self.clear_s = spot, leaving, free, clear_s


class Sharing:
    """See the module's docstring. It counts no passes."""

    name = "sharing"
    wait_bound_s = float("inf")

    def __init__(self, *, reasons: bool = False) -> None:
        self.reasons = reasons
        self.models: dict[str, Model] = {}
        self.spots: dict[str, Spot] = {}
        """GPUs that may be used."""
        self.sites: dict[str, dict[Set, Site]] = {}
        """Per model."""
        self.asked: Counter[str] = Counter()
        """Tasks of each model so far."""
        self.host = Host(self.asked.__getitem__)
        self.out: list[Instruction] = []
        self._there: dict[str, dict[tuple[str, Set], Site]] = {}
        """By GPU, also where it may not be used yet."""
        self._by_server: dict[str, Site] = {}
        self._run_by: dict[str, Site] = {}
        self._missing: dict[str, int] = {}
        self._blocked: dict[str, Job] = {}
        self._waiters: dict[str, list[str]] = {}
        self._uses = 0

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """Take in what happened and say what to do."""
        out: list[Instruction] = []
        self.out = out
        for event in events:
            self._take(now, event)
        self.decide(now)
        return out

    def next_tick(self) -> float | None:
        """Never: it acts when something happens."""
        return None

    def passed_over(self, job: str) -> int:
        """Not counted."""
        return 0

    # What a strategy decides

    def is_ready(self, now: float, job: Job) -> None:
        """A task waits for nothing any more."""
        raise NotImplementedError

    def decide(self, now: float) -> None:
        """Give ready tasks to sites."""
        raise NotImplementedError

    # What it can ask and do

    def run_s(self, job: Job) -> float:
        """How long the task will run."""
        return self.models[job.model].run_s if job.run_s is None else job.run_s

    def idle_site(self, model: str) -> Site | None:
        """One of the model's sites that does nothing."""
        return next((site for site in self.sites.get(model, {}).values() if site.is_idle), None)

    def fit(
        self, model: Model, spot: Spot, may_leave: Callable[[Site], bool], keep: Callable[[Site], tuple[float, float]]
    ) -> Fit | None:
        """How the model fits on a GPU if those may leave that `may_leave`, the ones that are kept least first."""
        if spot.device.id not in model.devices:
            return None
        sites = spot.sites.values()
        if not spot.device.shared:
            if not all(map(may_leave, sites)):
                return None
            return Fit(spot, list(sites), 0, max([self.host.away_s(self.models[s.model]) for s in sites], default=0.0))
        free = spot.device.memory - sum(self.models[s.model].memory for s in sites)
        if free >= model.memory:
            return Fit(spot, [], free - model.memory, 0.0)
        leaving, clear_s = [], 0.0
        for site in sorted(filter(may_leave, sites), key=keep):
            leaving.append(site)
            free += self.models[site.model].memory
            clear_s += self.host.away_s(self.models[site.model])
            if free >= model.memory:
                return Fit(spot, leaving, free - model.memory, clear_s)
        return None

    def switch_s(self, model: Model, fits: Iterable[Fit]) -> float:
        """What it costs to bring the model up there, seconds."""
        return self.host.load_s(model) + max(fit.clear_s for fit in fits)

    def bring_up(self, now: float, model: Model, fits: Sequence[Fit], reason: str) -> Site:
        """Load the model on as many GPUs as it takes, after what is in the way has left."""
        switch_s = self.switch_s(model, fits)
        for site in dict.fromkeys(site for fit in fits for site in fit.leaving):
            self._leave(site, f"makes room for {model.name}" if self.reasons else "")
        self.host.brought_up(model.name)
        devices = tuple(sorted(fit.spot.device.id for fit in fits))
        self.out.append(Load(model.name, devices, reason if self.reasons else ""))
        return self._site(model.name, devices, now + switch_s)

    def give(self, now: float, site: Site, job: Job, reason: str = "") -> None:
        """The site runs the task after all that it was given before."""
        self._uses += 1
        site.used = self._uses
        site.ends = max(site.ends, now) + self.run_s(job)
        site.line.append((job, reason if self.reasons else ""))
        self._proceed(site)

    def passed(self, job: Job) -> int:
        """How often it was passed over, for what is told of its start."""
        return 0

    # Carrying out

    def _proceed(self, site: Site) -> None:
        if site.ready and site.line and not site.running:
            job, reason = site.line.popleft()
            site.running = job.id
            self._run_by[job.id] = site
            self.out.append(Start(job.id, site.server, self.passed(job), reason))

    def _site(self, model: str, devices: Set, ends: float) -> Site:
        site = self.sites.setdefault(model, {})[devices] = Site(model, devices, ends)
        for d in devices:
            self._there.setdefault(d, {})[model, devices] = site
        return site

    def _leave(self, site: Site, reason: str) -> None:
        del self.sites[site.model][site.devices]
        for d in site.devices:
            del self._there[d][site.model, site.devices]
        del self._by_server[site.server]
        self.host.send_away(site.server, self.models[site.model], reason, self.out)

    def _take(self, now: float, event: Event) -> None:
        match event:
            case Arrived(job):
                self.asked[job.model] += 1
                if job.needs:
                    self._blocked[job.id] = job
                    self._missing[job.id] = len(job.needs)
                    for need in job.needs:
                        self._waiters.setdefault(need, []).append(job.id)
                else:
                    self.is_ready(now, job)
            case Completed(done):
                site = self._run_by.pop(done)
                site.running = ""
                if not site.line:
                    site.ends = now
                self._proceed(site)
                for waiter in self._waiters.pop(done, ()):
                    self._missing[waiter] -= 1
                    if not self._missing[waiter]:
                        del self._missing[waiter]
                        self.is_ready(now, self._blocked.pop(waiter))
            case ServerIs(server):
                devices = tuple(sorted(server.devices))
                known = self.sites.get(server.model, {}).get(devices)
                site = known if known is not None else self._site(server.model, devices, now)
                site.server, site.ready = server.id, server.ready
                self._by_server[server.id] = site
                self._proceed(site)
            case ServerGone(server_id, _, asleep):
                self.host.gone(server_id, asleep)
            case Started(job, server_id):
                site = self._by_server[server_id]
                site.running = job.id
                site.ends = now + self.run_s(job)
                self._run_by[job.id] = site
            case DeviceIs(device):
                spot = self.spots[device.id] = Spot(device, len(self.spots))
                spot.sites = self._there.setdefault(device.id, {})
            case HostIs(memory):
                self.host.room = memory
            case ModelIs(model):
                self.models[model.name] = model
            case _:
                pass


def own_switch_s(model: Model, host: Host) -> float:
    """About what it costs to switch to a model, seconds."""
    return host.load_s(model) + unload_s(model)
