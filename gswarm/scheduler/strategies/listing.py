"""What the list strategies share: each gives ready tasks, one after the other, a set of GPUs for good.

A strategy decides whom a task is given to; this carries it out. Each GPU has a line of tasks given to it. A task whose
turn it is on all of its GPUs runs there, after a load if they do not hold its model on exactly this set.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence

from gswarm.scheduler.strategies.memory import Host
from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    DeviceIs,
    Event,
    HostIs,
    Instruction,
    Job,
    Load,
    Model,
    ModelIs,
    Server,
    ServerGone,
    ServerIs,
    Start,
    Started,
)

Set = tuple[str, ...]


class Turn:
    """A task and the set that it was given."""

    __slots__ = ("at_head", "devices", "job", "reason")

    def __init__(self, job: Job, devices: Set, reason: str) -> None:
        self.job, self.devices, self.reason = job, devices, reason
        self.at_head = 0


class ListStrategy:
    """See the module's docstring. It does not count passes: what is given is given."""

    name = "list"
    wait_bound_s = float("inf")

    def __init__(self, *, reasons: bool = False) -> None:
        self.reasons = reasons
        self.ready: deque[Job] = deque()
        """Ready tasks that were given nothing yet, first come first."""
        self.models: dict[str, Model] = {}
        self.devices: list[str] = []
        """In the order in which they came."""
        self.number: dict[str, int] = {}
        self.idle: list[int] = []
        """Numbers of the devices that nothing is given to, sorted."""
        self.placement: dict[str, tuple[str, Set]] = {}
        """Model and set that a device was last given to; the model is there if all of the set say so."""
        self._lines: dict[str, deque[Turn]] = {}
        self._server_at: dict[str, str] = {}
        self._servers: dict[str, Server] = {}
        self._blocked: dict[str, tuple[Job, set[str]]] = {}
        self._waiters: dict[str, list[str]] = {}
        self._running: dict[str, Turn] = {}
        self._out: list[Instruction] = []
        self._asked: Counter[str] = Counter()
        """Tasks of each model so far."""
        self._host = Host(self._asked.__getitem__)

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """Take in what happened and say what to do."""
        out: list[Instruction] = []
        self._out = out
        for event in events:
            self._take(event)
        self.decide(now)
        return out

    def decide(self, now: float) -> None:
        """Give ready tasks away."""
        raise NotImplementedError

    def next_tick(self) -> float | None:
        """Never: it acts when something happens."""
        return None

    def passed_over(self, job: str) -> int:
        """Not counted."""
        return 0

    # For those who decide

    def holds(self, model: str, devices: Set) -> bool:
        """Whether the set will hold the model once what was given to it is done."""
        return all(self.placement.get(d) == (model, devices) for d in devices)

    def switch_s(self, model: str, devices: Set) -> float:
        """What a load of the model on the set costs, seconds: 0 where it is."""
        if self.holds(model, devices):
            return 0.0
        held = [self._host.away_s(self.models[self.placement[d][0]]) for d in devices if d in self.placement]
        return self._host.load_s(self.models[model]) + max(held, default=0.0)

    def first_free(self, model: Model) -> Set | None:
        """The first idle devices that take the model, as many as it needs."""
        found: list[str] = []
        for n in self.idle:
            if self.devices[n] in model.devices:
                found.append(self.devices[n])
                if len(found) == model.width:
                    return tuple(found)
        return None

    def give(self, job: Job, devices: Set, reason: str = "") -> None:
        """The set runs the job after all that was given to it before."""
        devices = tuple(sorted(devices))
        turn = Turn(job, devices, reason if self.reasons else "")
        for d in devices:
            if not self._lines[d]:
                self.idle.remove(self.number[d])
                turn.at_head += 1
            self._lines[d].append(turn)
            self.placement[d] = (job.model, devices)
        if turn.at_head == len(devices):
            self._proceed(turn)

    # Carrying out

    def _proceed(self, turn: Turn) -> None:
        """Its turn has come on all its devices: run it, or make the next step towards that."""
        server = self._servers.get(self._server_at.get(turn.devices[0], ""))
        if server is not None and server.model == turn.job.model and tuple(sorted(server.devices)) == turn.devices:
            if server.ready and turn.job.id not in self._running:
                self._running[turn.job.id] = turn
                self._out.append(Start(turn.job.id, server.id, 0, turn.reason))
            return
        there = dict.fromkeys(self._server_at[d] for d in turn.devices if d in self._server_at)
        if not all(self._servers[name].ready for name in there):
            return  # it goes on when they are
        why = f"makes room for {turn.job.model}" if self.reasons else ""
        for name in there:
            gone = self._servers.pop(name)
            for d in gone.devices:
                del self._server_at[d]
            self._host.send_away(name, self.models.get(gone.model), why, self._out)
        self._host.brought_up(turn.job.model)
        self._out.append(Load(turn.job.model, turn.devices, turn.reason))

    def _take(self, event: Event) -> None:
        match event:
            case Arrived(job):
                if self._host.room:
                    self._asked[job.model] += 1
                if job.needs:
                    self._blocked[job.id] = (job, set(job.needs))
                    for need in job.needs:
                        self._waiters.setdefault(need, []).append(job.id)
                else:
                    self.ready.append(job)
            case Completed(done):
                self._ended(done)
            case ServerIs(server):
                self._servers[server.id] = server
                devices = tuple(sorted(server.devices))
                for d in devices:
                    self._server_at[d] = server.id
                    self.placement.setdefault(d, (server.model, devices))
                if server.ready:
                    lines = [line for d in devices if (line := self._lines.get(d))]
                    for turn in dict.fromkeys(line[0] for line in lines):
                        self._proceed_if_due(turn)
            case ServerGone(server_id, _, asleep):
                self._host.gone(server_id, asleep)
                if (known := self._servers.pop(server_id, None)) is not None:
                    for d in known.devices:
                        self._server_at.pop(d, None)
            case DeviceIs(device):
                if device.id not in self.number:
                    self.number[device.id] = len(self.devices)
                    insort(self.idle, len(self.devices))
                    self.devices.append(device.id)
                    self._lines[device.id] = deque()
            case HostIs(memory):
                self._host.room = memory
            case ModelIs(model):
                self.models[model.name] = model
            case Started(job, server_id):
                turn = Turn(job, self._servers[server_id].devices, "")
                self._running[job.id] = turn
                for d in turn.devices:
                    if d not in self._lines:  # it is not free, and so was not told of
                        self.number[d] = len(self.devices)
                        self.devices.append(d)
                        self._lines[d] = deque()
                    elif not self._lines[d]:
                        self.idle.remove(self.number[d])
                    self._lines[d].appendleft(turn)
            case _:
                pass

    def _ended(self, done: str) -> None:
        turn = self._running.pop(done)
        for d in turn.devices:
            line = self._lines[d]
            line.popleft()
            if line:
                line[0].at_head += 1
                self._proceed_if_due(line[0])
            else:
                insort(self.idle, self.number[d])
        for waiter in self._waiters.pop(done, ()):
            job, needs = self._blocked[waiter]
            needs.discard(done)
            if not needs:
                del self._blocked[waiter]
                self.ready.append(job)

    def _proceed_if_due(self, turn: Turn) -> None:
        if turn.at_head == len(turn.devices):
            self._proceed(turn)
