"""Group ready jobs by model, prefer what is loaded, and bound how long any ready job may be passed over.

The rules, in the order in which they are applied at each event:

1. A model with ready jobs and no server gets a free device. If there is none, a server of ours with nothing left to
   do makes room. If there is none either, a server is drained (starts nothing more) once the waiting job is *due*: it
   has waited `wait_bound_s`, or was passed over `max_passed` times, or outranks everything that waits for the server.
2. Another copy of a loaded model gets a free device if its queue is worth more than two loads.
3. Each server that is not draining starts jobs of its model while it has slots: first the oldest if it is due, then
   by rank, then by age.

The bound. A job is passed over when a job that became ready later starts where it could have run: on a server of its
model, or, while its model has no server and no device promised, on a server of ours on a device its model fits.
Counts never exceed `max_passed` by more than one stint (`slots` starts) for each model that is due before it: a server
may be drained only after its first stint, so every load serves someone, and a due job that is first in line gets the
next device that is not within its stint. After `wait_bound_s` only jobs that are overdue themselves go before it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    Device,
    DeviceGone,
    DeviceIs,
    Event,
    Instruction,
    Job,
    Load,
    LoadRefused,
    Model,
    ModelGone,
    ModelIs,
    Rank,
    Server,
    ServerGone,
    ServerIs,
    Start,
    Started,
    Unload,
    Withdrawn,
)

MAX_PASSED = 256
COOLDOWN_S = 60.0
"""How long a model that failed to load on a device is not tried there again."""
USABLE = 0.9
"""Share of a shared device's memory that is planned with."""
COPY_WORTH_LOADS = 2.0


@dataclass(slots=True)
class _Ready:
    """A ready job in line."""

    job: Job
    seq: int
    since: float


@dataclass(slots=True)
class _Group:
    """The ready jobs of one model."""

    model: str
    line: deque[_Ready] = field(default_factory=deque)
    """By age; entries that have gone are skipped."""
    heap: list[tuple[int, int, _Ready]] = field(default_factory=list)
    """By rank, then age; likewise."""
    members: dict[str, _Ready] = field(default_factory=dict)
    passes: list[int] = field(default_factory=list)
    """Sequence numbers of jobs that were started where these could have run, sorted."""

    def __len__(self) -> int:
        return len(self.members)

    def add(self, entry: _Ready) -> None:
        self.members[entry.job.id] = entry
        self.line.append(entry)
        heapq.heappush(self.heap, (-entry.job.rank, entry.seq, entry))

    def rerank(self, entry: _Ready) -> None:
        heapq.heappush(self.heap, (-entry.job.rank, entry.seq, entry))

    def remove(self, job: str) -> None:
        self.members.pop(job, None)

    def oldest(self) -> _Ready | None:
        while self.line:
            if self.members.get(self.line[0].job.id) is self.line[0]:
                return self.line[0]
            self.line.popleft()
        self.passes.clear()
        return None

    def best(self) -> _Ready | None:
        while self.heap:
            rank, _, entry = self.heap[0]
            if self.members.get(entry.job.id) is entry and -rank == entry.job.rank:
                return entry
            heapq.heappop(self.heap)
        return None

    def pass_over(self, seq: int) -> None:
        """A job with this number starts where these could have."""
        oldest = self.oldest()
        if oldest is None or seq < oldest.seq:
            return
        if self.passes and self.passes[0] < oldest.seq:
            del self.passes[: bisect_right(self.passes, oldest.seq)]
        insort(self.passes, seq)

    def passed(self, entry: _Ready) -> int:
        """How many later jobs were started in its place."""
        return len(self.passes) - bisect_right(self.passes, entry.seq)


@dataclass(slots=True)
class _Copy:
    """A server as the strategy uses it."""

    server: Server
    running: set[str] = field(default_factory=set)
    stint: int = 0
    """Jobs started since it came up."""
    draining_for: str = ""
    leaving: bool = False

    @property
    def free(self) -> int:
        s = self.server
        usable = s.ready and s.reachable and not self.draining_for and not self.leaving
        return max(0, s.slots - len(self.running)) if usable else 0

    @property
    def in_stint(self) -> bool:
        return self.server.ours and self.stint < max(1, self.server.slots)


class Grouping:
    """See the module's docstring."""

    name = "grouping"

    def __init__(self, wait_bound_s: float = 60.0, max_passed: int = MAX_PASSED) -> None:
        self.wait_bound_s, self.max_passed = wait_bound_s, max_passed
        self._now = 0.0
        self._seq = 0
        self._groups: dict[str, _Group] = {}
        self._ready: dict[str, str] = {}
        """Ready job to its model."""
        self._blocked: dict[str, tuple[Job, set[str]]] = {}
        self._waiters: dict[str, list[str]] = {}
        self._running: dict[str, str] = {}
        self._copies: dict[str, _Copy] = {}
        self._devices: dict[str, Device] = {}
        self._models: dict[str, Model] = {}
        self._loading: dict[str, tuple[str, ...]] = {}
        """Model to the devices on which a load was asked for and no server is seen yet."""
        self._cooling: dict[tuple[str, str], float] = {}

    # The seam

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """Take in what happened and say what to do."""
        self._now = max(now, self._now)
        for event in events:
            self._take(event)
        out: list[Instruction] = []
        self._make_room(out)
        for copy in list(self._copies.values()):
            self._start_on(copy, out)
        return out

    def next_tick(self) -> float | None:
        """When the next job comes due or a cooldown ends."""
        times = [until for until in self._cooling.values() if until > self._now]
        for group in self._groups.values():
            if (oldest := group.oldest()) and (due := oldest.since + self.wait_bound_s) > self._now:
                times.append(due)
        return min(times, default=None)

    def passed_over(self, job: str) -> int:
        """How often later jobs were started in its place."""
        group = self._groups.get(self._ready.get(job, ""))
        return group.passed(group.members[job]) if group else 0

    # Events

    def _take(self, event: Event) -> None:
        match event:
            case Arrived(job):
                self._arrived(job)
            case Started(job, server):
                self._leave_line(job.id)
                self._running[job.id] = server
                if copy := self._copies.get(server):
                    copy.running.add(job.id)
            case Completed(job_id):
                self._ended(job_id)
                for waiter in self._waiters.pop(job_id, ()):
                    if waiter in self._blocked:
                        job, needs = self._blocked[waiter]
                        needs.discard(job_id)
                        if not needs:
                            del self._blocked[waiter]
                            self._line_up(job)
            case Withdrawn(job_id):
                self._ended(job_id)
            case ServerIs(server):
                self._server_is(server)
            case ServerGone(server_id, failed):
                if copy := self._copies.pop(server_id, None):
                    for job_id in copy.running:
                        self._running.pop(job_id, None)
                    if failed:
                        self._cool(copy.server.model, copy.server.devices)
                    if self._loading.get(copy.server.model) == copy.server.devices:
                        del self._loading[copy.server.model]
            case LoadRefused(model, device):
                self._loading.pop(model, None)
                self._cool(model, (device,))
            case DeviceIs(device):
                self._devices[device.id] = device
            case DeviceGone(device_id):
                self._devices.pop(device_id, None)
            case ModelIs(model):
                self._models[model.name] = model
            case ModelGone(name):
                self._models.pop(name, None)
            case _:
                pass

    def _arrived(self, job: Job) -> None:
        if job.id in self._running:
            return
        if job.needs:
            self._leave_line(job.id)
            self._blocked[job.id] = (job, set(job.needs))
            for need in job.needs:
                self._waiters.setdefault(need, []).append(job.id)
            return
        self._blocked.pop(job.id, None)
        if (known := self._ready.get(job.id)) == job.model:
            group = self._groups[known]
            entry = group.members[job.id]
            if entry.job.rank != job.rank:
                entry.job = job
                group.rerank(entry)
            return
        self._leave_line(job.id)
        self._line_up(job)

    def _line_up(self, job: Job) -> None:
        self._seq += 1
        self._ready[job.id] = job.model
        group = self._groups.setdefault(job.model, _Group(job.model))
        group.add(_Ready(job, self._seq, self._now - job.waited_s))

    def _leave_line(self, job: str) -> None:
        if (model := self._ready.pop(job, None)) is not None:
            self._groups[model].remove(job)
            if not self._groups[model]:
                del self._groups[model]

    def _ended(self, job: str) -> None:
        self._leave_line(job)
        self._blocked.pop(job, None)
        if (copy := self._copies.get(self._running.pop(job, ""))) is not None:
            copy.running.discard(job)

    def _server_is(self, server: Server) -> None:
        copy = self._copies.get(server.id)
        if copy is None:
            copy = self._copies[server.id] = _Copy(server)
            copy.running = {job for job, where in self._running.items() if where == server.id}
        copy.server = server
        if self._loading.get(server.model) == server.devices:
            del self._loading[server.model]

    def _cool(self, model: str, devices: Sequence[str]) -> None:
        for device in devices:
            self._cooling[model, device] = self._now + COOLDOWN_S

    # Where models go

    def _make_room(self, out: list[Instruction]) -> None:
        self._cooling = {key: until for key, until in self._cooling.items() if until > self._now}
        served = {c.server.model for c in self._copies.values() if c.server.reachable and not self._goes(c)}
        needy = [g for g in self._groups.values() if g and g.model not in served and g.model not in self._loading]
        claimed = {c.draining_for for c in self._copies.values() if c.draining_for}
        self._forget_vain_drains()
        for group in sorted(needy, key=self._claim):
            model = self._models.get(group.model)
            if model is None:
                continue
            if device := self._free_device(model):
                self._load(model, device, f"{_jobs(len(group))} of {model.name} wait and {device} is free", out)
            elif group.model not in claimed:
                self._drain_for(group, model)
        self._unload_drained(out)
        self._add_copies(out)

    def _goes(self, copy: _Copy) -> bool:
        return bool(copy.draining_for) or copy.leaving

    def _claim(self, group: _Group) -> tuple[bool, int, int, int]:
        """Who gets a device first: who is due, then rank, then the longest line, then age."""
        oldest, best = group.oldest(), group.best()
        assert oldest is not None and best is not None
        if self._is_due(group, oldest):
            return (False, 0, 0, oldest.seq)
        return (True, -best.job.rank, -len(group), oldest.seq)

    def _is_late(self, entry: _Ready) -> bool:
        return self._now - entry.since >= self.wait_bound_s

    def _is_due(self, group: _Group, entry: _Ready) -> bool:
        return self._is_late(entry) or group.passed(entry) >= self.max_passed

    def _fits(self, model: Model, device: Device, leaving: _Copy | None = None) -> bool:
        """Whether it fits beside what is there, once `leaving` has left."""
        there = [c for c in self._copies.values() if device.id in c.server.devices and c is not leaving]
        asked = [self._models[m].memory for m, d in self._loading.items() if device.id in d and m in self._models]
        if not device.shared:
            return not there and not asked and model.memory <= device.memory
        taken = sum(c.server.memory // max(1, len(c.server.devices)) for c in there) + sum(asked)
        return taken + model.memory <= device.memory * USABLE

    def _places(self, model: Model) -> Iterator[Device]:
        for name in model.devices:
            if (device := self._devices.get(name)) and (model.name, name) not in self._cooling:
                yield device

    def _free_device(self, model: Model) -> str:
        """The smallest free device that takes it, exclusive ones first; empty: none."""
        promised = {
            d for c in self._copies.values() if c.draining_for not in ("", model.name) for d in c.server.devices
        }
        free = [d for d in self._places(model) if self._fits(model, d) and (d.id not in promised or not d.shared)]
        return min(free, key=lambda d: (d.shared, d.memory, d.id)).id if free else ""

    def _load(self, model: Model, device: str, reason: str, out: list[Instruction]) -> None:
        self._loading[model.name] = (device,)
        out.append(Load(model.name, (device,), reason))

    def _drain_for(self, group: _Group, model: Model) -> None:
        """Choose a server of ours that makes room: an idle one, or a busy one if the group's claim is good enough."""
        oldest, best = group.oldest(), group.best()
        assert oldest is not None and best is not None
        counted = group.passed(oldest) >= self.max_passed
        late = self._is_late(oldest)
        choices: list[tuple[int, int, str]] = []
        for copy in self._copies.values():
            if not self._could_make_room(copy, model):
                continue
            held = self._groups.get(copy.server.model)
            waiting = len(held) if held else 0
            if waiting and copy.in_stint:
                continue
            if waiting and held is not None:
                held_oldest, held_best = held.oldest(), held.best()
                assert held_oldest is not None and held_best is not None
                outranks = best.job.rank > held_best.job.rank and not self._is_due(held, held_oldest)
                # Both late: the held model goes on, or every job would bring a swap. The count ends that.
                yields = counted or outranks or (late and not self._is_late(held_oldest))
                if not yields:
                    continue
            choices.append((waiting, len(copy.running), copy.server.id))
        if choices:
            self._copies[min(choices)[2]].draining_for = group.model

    def _could_make_room(self, copy: _Copy, model: Model) -> bool:
        s = copy.server
        if not s.ours or self._goes(copy) or (not s.ready and self._groups.get(s.model)):
            return False
        return any(d.id in s.devices and self._fits(model, d, leaving=copy) for d in self._places(model))

    def _forget_vain_drains(self) -> None:
        """A drain whose cause has gone is off, unless its server is on its way out."""
        served = {c.server.model for c in self._copies.values() if not self._goes(c)} | set(self._loading)
        for copy in self._copies.values():
            wanted = copy.draining_for
            if wanted and not copy.leaving and (not self._groups.get(wanted) or wanted in served):
                copy.draining_for = ""

    def _unload_drained(self, out: list[Instruction]) -> None:
        for copy in self._copies.values():
            if copy.draining_for and not copy.running and not copy.leaving:
                copy.leaving = True
                out.append(Unload(copy.server.id, f"makes room for {copy.draining_for}"))

    def _add_copies(self, out: list[Instruction]) -> None:
        """Another copy where the line is worth more than two loads and a device is free."""
        for group in list(self._groups.values()):
            model = self._models.get(group.model)
            copies = [c for c in self._copies.values() if c.server.model == group.model and not self._goes(c)]
            if model is None or not copies or group.model in self._loading or not all(c.server.ready for c in copies):
                continue
            slots = sum(c.server.slots for c in copies)
            backlog_s = len(group) * model.run_s / max(1, slots)
            if backlog_s > COPY_WORTH_LOADS * model.load_s and (device := self._free_device(model)):
                if self._devices[device].shared:
                    continue  # a second copy on the same processor takes from the first
                self._load(model, device, f"{_jobs(len(group))} of {model.name} are worth another copy", out)

    # Starting

    def _start_on(self, copy: _Copy, out: list[Instruction]) -> None:
        group = self._groups.get(copy.server.model)
        while group and copy.free > 0:
            oldest, best = group.oldest(), group.best()
            assert oldest is not None and best is not None
            entry = oldest if self._is_due(group, oldest) else best
            passed = group.passed(entry)
            why = _why(entry is oldest and entry is not best, passed, entry.job.rank)
            self._leave_line(entry.job.id)
            self._running[entry.job.id] = copy.server.id
            copy.running.add(entry.job.id)
            copy.stint += 1
            self._count_passes(copy, entry)
            out.append(Start(entry.job.id, copy.server.id, passed, why))
            group = self._groups.get(copy.server.model)

    def _count_passes(self, copy: _Copy, started: _Ready) -> None:
        for group in self._groups.values():
            if group.model == copy.server.model or (copy.server.ours and self._covets(group, copy)):
                group.pass_over(started.seq)

    def _covets(self, group: _Group, copy: _Copy) -> bool:
        """Whether the group has nowhere to go and could use this server's device."""
        if group.model in self._loading:
            return False
        for other in self._copies.values():
            serves = other.server.model == group.model and other.server.reachable and not self._goes(other)
            if serves or other.draining_for == group.model:
                return False
        model = self._models.get(group.model)
        return model is not None and any(device in model.devices for device in copy.server.devices)


def _jobs(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _why(due: bool, passed: int, rank: Rank) -> str:
    if due:
        return f"due: it has waited long enough and was passed over {passed} times"
    return "next in line" if rank == Rank.NORMAL else f"next in line at priority {rank.name.lower()}"
