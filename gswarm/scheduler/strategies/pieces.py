"""What a fleet is made of: tasks, a model with its line of them, servers, GPUs, and moves of a model onto GPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice
from operator import attrgetter
from typing import Any

from gswarm.scheduler.strategies.memory import unload_s
from gswarm.scheduler.strategies.ranked import Ranked
from gswarm.scheduler.strategy import Device, Job, Model, Server

BLOCKED_PART = 0.5
"""How much work that waits for other tasks still counts, of ready work."""


class State(IntEnum):
    """Of a task."""

    BLOCKED = 0
    READY = 1
    RUNNING = 2
    GONE = 3
    TOLD = 4
    """Could run, and is not in line yet: what waits for it is still being told."""


BLOCKED, READY, RUNNING, GONE, TOLD = State.BLOCKED, State.READY, State.RUNNING, State.GONE, State.TOLD


class Task:
    """A job as the strategy keeps it."""

    __slots__ = (
        "arrived",
        "due",
        "id",
        "is_alone",
        "is_root",
        "line",
        "missing",
        "number",
        "rank",
        "run_s",
        "server",
        "since",
        "state",
        "tail_s",
    )

    def __init__(self, job: Job, line: Line, now: float) -> None:
        self.id, self.line, self.rank, self.run_s = job.id, line, job.rank, job.run_s
        self.arrived = self.since = now - job.waited_s
        self.missing, self.number = 0, -1
        self.due = job.deadline
        """When it should have ended; infinite once that cannot be any more."""
        self.is_root, self.is_alone = False, not job.request
        """Whether it waits for no other; whether it is part of no request, so that it counts from when it could run."""
        self.tail_s = 0.0
        """The longest path of what waits for it, with a switch for each change of model."""
        self.server = ""
        self.state = BLOCKED

    def __getstate__(self) -> tuple[object, ...]:
        # Values without their names: a plan copies tens of thousands of these, and that takes a third less.
        return _VALUES(self)

    def __setstate__(self, values: tuple[Any, ...]) -> None:
        (
            self.arrived, self.due, self.id, self.is_alone, self.is_root, self.line, self.missing, self.number,
            self.rank, self.run_s, self.server, self.since, self.state, self.tail_s,
        ) = values  # fmt: skip


_VALUES = attrgetter(*Task.__slots__)


class Pile:
    """Tasks of a model by how long they take: seconds of those that say so, and how many do not."""

    __slots__ = ("count", "said_s", "unsaid")

    def __init__(self) -> None:
        self.count, self.said_s, self.unsaid = 0, 0.0, 0

    def add(self, run_s: float | None) -> None:
        """A task, with its seconds if it says them."""
        self.count += 1
        if run_s is None:
            self.unsaid += 1
        else:
            self.said_s += run_s

    def take(self, run_s: float | None) -> None:
        """The same task is here no more."""
        self.count -= 1
        if run_s is None:
            self.unsaid -= 1
        else:
            self.said_s = self.said_s - run_s if self.count else 0.0  # sums of floats leave crumbs

    def seconds(self, run_s: float) -> float:
        """Seconds of all, where those that do not say take `run_s`, which may be known better each time."""
        return self.said_s + self.unsaid * run_s


class Line:
    """A model: its ready tasks, and its servers."""

    __slots__ = (
        "blocked", "coming", "copies", "demand", "devices", "model", "moves", "name", "open", "parked", "queue", "ready", "run_s",
        "slots", "switch_s", "width",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.model: Model | None = None
        self.devices: frozenset[str] = frozenset()
        """That it could be loaded on now."""
        self.width, self.switch_s, self.run_s = 1, 0.0, 0.0
        self.queue: Ranked[Task] = Ranked()
        """Ready tasks by rank, then order; those that are ready no more, or have another rank now, are skipped."""
        self.ready, self.blocked = Pile(), Pile()
        """Tasks that could run, and those that wait for others."""
        self.demand = 0.0
        """GPU-seconds that were asked of it so far, old ones counting less."""
        self.parked: dict[str, Task] = {}
        """Ready tasks that nothing can be done for now."""
        self.copies: dict[str, Copy] = {}
        """Servers that stay and can be reached."""
        self.open: dict[str, Copy] = {}
        """Those of them that can start a task now."""
        self.moves: list[Move] = []
        self.coming = 0
        """Moves that cannot be called off."""
        self.slots = 0

    def is_model(self, model: Model) -> None:
        """What it takes and costs."""
        self.model, self.width, self.run_s = model, model.width, model.run_s
        self.devices = frozenset(model.devices)
        self.switch_s = model.load_s + unload_s(model)

    @property
    def supply(self) -> int:
        """Servers there and coming."""
        return len(self.copies) + self.coming

    @property
    def is_covered(self) -> bool:
        """Whether there is a server being loaded for each ready task."""
        if self.ready.count > self.supply:
            return False  # as most often, without a look at each server
        return self.ready.count <= self.coming + sum(not copy.server.ready for copy in self.copies.values())

    def clear_s(self, change: int = 0, part: float = 0.0) -> float:
        """How long its servers take to clear what is ready, and `part` of what waits for others, with so many servers more."""
        copies = len(self.copies)
        servers = copies + self.coming + change
        if servers <= 0:
            return float("inf")
        work = self.ready.seconds(self.run_s) + part * self.blocked.seconds(self.run_s)
        return work * copies / (servers * self.slots) if copies else work / servers

    def spare(self, limit_s: float) -> int:
        """How many servers it can give and keep one, and have less than `limit_s` of known work a server."""
        if limit_s <= 0:
            return 0
        copies = len(self.copies)
        work = self.ready.seconds(self.run_s) + BLOCKED_PART * self.blocked.seconds(self.run_s)
        needed = work * copies / (limit_s * self.slots)
        return min(copies + self.coming - int(needed), copies) - 1

    def draining(self) -> Move | None:
        """Its move that waits for GPUs."""
        for move in self.moves:
            if not move.is_fixed:
                return move
        return None

    def push(self, task: Task, order: float) -> None:
        self.queue.push((-task.rank, order, task.number, task))

    def take(self) -> tuple[int, float, int, Task]:
        """The next in order, out of the queue; there is one."""
        queue = self.queue
        while True:
            entry = queue.pop()
            task = entry[3]
            if task.state == READY and task.rank == -entry[0]:
                return entry

    def rank(self) -> int:
        """The highest priority of its ready tasks; 0: there are none."""
        top = self.top()
        return -top[0] if top is not None else 0

    def top(self) -> tuple[int, float, int, Task] | None:
        """The next in order."""
        queue = self.queue
        while (entry := queue.top()) is not None:
            task = entry[3]
            if task.state == READY and task.rank == -entry[0]:
                return entry
            queue.pop()
        return None


class Copy:
    """A server."""

    __slots__ = ("began", "ends", "is_leaving", "line", "move", "places", "running", "served", "server")

    def __init__(self, server: Server, line: Line, places: list[Place], now: float) -> None:
        self.server, self.line, self.places = server, line, places
        self.running = 0
        self.served = self.is_leaving = False
        """Whether it ran anything since it was loaded; whether it is on its way out."""
        self.began = self.ends = now
        """When its load began; when it will have nothing running."""
        self.move: Move | None = None

    @property
    def can_start(self) -> bool:
        s = self.server
        return s.ready and s.reachable and self.move is None and self.running < s.slots


class Place:
    """A device."""

    __slots__ = ("copies", "device", "move", "number")

    def __init__(self, device: Device, number: int) -> None:
        self.device, self.number = device, number
        self.copies: tuple[Copy, ...] = ()
        self.move: Move | None = None

    @property
    def copy(self) -> Copy | None:
        return self.copies[0] if self.copies else None


def together(places: Iterable[Place], width: int) -> list[Place]:
    """The first so many that are of one machine, in order; none where no machine has as many."""
    if width == 1:
        return list(islice(places, 1))
    found: defaultdict[str, list[Place]] = defaultdict(list)
    for place in places:
        mine = found[place.device.machine]
        mine.append(place)
        if len(mine) == width:
            return mine
    return []


class Move:
    """A model's claim on a set of GPUs; see `fleet.py`."""

    __slots__ = ("began", "is_fixed", "left", "line", "places", "reason")

    def __init__(self, line: Line, places: list[Place], reason: str, now: float) -> None:
        self.line, self.places, self.reason, self.began = line, places, reason, now
        self.left: dict[str, Copy] = {}
        """Servers that are still on its GPUs."""
        self.is_fixed = False
        """It cannot be called off any more."""
