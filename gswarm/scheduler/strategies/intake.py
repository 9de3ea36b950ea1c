"""What `online` knows: tasks and what they wait for, models, GPUs and servers, kept by the events that it is told."""

from __future__ import annotations

from collections.abc import Iterable

from gswarm.scheduler.strategies.fleet import Fleet
from gswarm.scheduler.strategies.pieces import BLOCKED, GONE, READY, RUNNING, TOLD, Line, State, Task
from gswarm.scheduler.strategies.turns import Turns
from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    DeviceGone,
    DeviceIs,
    Event,
    HostIs,
    Job,
    LoadRefused,
    ModelGone,
    ModelIs,
    Rank,
    ServerGone,
    ServerIs,
    Started,
    Withdrawn,
)

MEMORY_TASKS = 4096
"""After so many arrivals the demand seen before counts half."""
AHEAD_S = 1e9
"""How much older than it is a task with a deadline counts: they go first, by deadline."""
FOREVER = float("inf")
NORMAL = Rank.NORMAL


class Intake:
    """See the module's docstring. It decides nothing but the order of the tasks of a model."""

    def __init__(self, wait_weight: float, tail_weight: float) -> None:
        """A task counts as `tail_weight` of what must follow it older than it is.

        One that waits for no other counts as at least `wait_weight` switch times older.
        """
        self.wait_weight, self.tail_weight = wait_weight, tail_weight
        self._now = 0.0
        self._fleet = Fleet()
        self._turns: Turns[Task] = Turns()
        self._tasks: dict[str, Task] = {}
        self._waiters: dict[str, list[Task]] = {}
        """Those that wait for a task, by its name. Not in the task: copying a long chain would take as deep a stack."""
        self._adopted: dict[str, list[Task]] = {}
        """Running on servers that are not known yet."""
        self._waiting: dict[str, Line] = {}
        """Models with ready tasks."""
        self._blocked: dict[str, Line] = {}
        """Models with tasks that wait for others."""
        self._touched = self._fleet.touched
        self._demand = 0.0
        self._arrivals = 0
        self._ended_since_balance = 0
        self._ranks_differ = False
        """Whether any task ever had another priority than most."""
        self._fleet_changed = False

    def take_in(self, now: float, events: Iterable[Event]) -> bool:
        """Note what happened; whether models or servers have changed."""
        if now > self._now:
            self._now = now
        told: list[Task] = []
        for event in events:
            if isinstance(event, Completed):
                self._completed(event.job)
            elif isinstance(event, Arrived):
                self._arrived(event.job, told)
            else:
                self._other(event)
        if told:
            self._line_up(told)
        if not self._tasks:
            self._waiters.clear()  # of tasks that were called off
        if not self._fleet_changed:
            return False
        self._fleet_changed = False
        self._unpark()
        return True

    def _line_up(self, told: list[Task]) -> None:
        """New tasks, last first: what waits for a task is told after it, so that all that follows it is known by then."""
        for task in reversed(told):
            waiters = self._waiters.get(task.id)
            if waiters is None:
                continue
            longest = 0.0
            for waiter in waiters:
                line = waiter.line
                tail_s = waiter.tail_s + (line.run_s if waiter.run_s is None else waiter.run_s)
                if line is not task.line:
                    tail_s += line.switch_s
                if tail_s > longest:
                    longest = tail_s
            task.tail_s = longest
        for task in told:
            if task.state == TOLD:
                self._ready(task)

    def _arrived(self, job: Job, told: list[Task]) -> None:
        if job.rank != NORMAL:
            self._ranks_differ = True
        line = self._fleet.lines.get(job.model) or self._fleet.line(job.model)
        task = Task(job, line, self._now)
        known = self._tasks.setdefault(job.id, task)
        if known is not task:
            if known.state == RUNNING:
                return
            if known.state == READY and not job.needs and known.line is line:
                if known.rank != job.rank:
                    known.rank = job.rank
                    line.push(known, self._order(known))
                return
            if known.state == BLOCKED and job.needs and known.line is line:
                known.rank = job.rank
                return
            self._forget(known)
            self._tasks[job.id] = task
        told.append(task)
        seconds = line.run_s if job.run_s is None else job.run_s
        line.demand += seconds * line.width
        self._demand += seconds * line.width
        self._arrivals += 1
        if self._arrivals % MEMORY_TASKS == 0:
            self._demand /= 2
            for other in self._fleet.lines.values():
                other.demand /= 2
        if job.needs:
            line.blocked.add(job.run_s)
            self._blocked[line.name] = line
            task.missing = len(job.needs)
            for need in job.needs:
                waiters = self._waiters.get(need)
                if waiters is None:
                    self._waiters[need] = [task]
                else:
                    waiters.append(task)
        else:
            task.is_root = True
            task.state = TOLD

    def _order(self, task: Task) -> float:
        if task.due < FOREVER:
            return task.due - AHEAD_S
        ahead_s = self.tail_weight * task.tail_s
        if task.is_root and ahead_s < (least_s := self.wait_weight * task.line.switch_s):
            ahead_s = least_s
        return task.arrived - ahead_s

    def _ready(self, task: Task) -> None:
        line = task.line
        task.state = READY
        if not line.copies and not line.moves and not self._fleet.can_place(line):
            line.parked[task.id] = task
            return
        self._turns.join(task)
        line.push(task, self._order(task))
        line.ready.add(task.run_s)
        if line.ready.count == 1:
            self._waiting[line.name] = line
        if line.open:
            self._touched[line.name] = line

    def _unready(self, task: Task, state: State) -> int:
        """How often it was passed over."""
        line = task.line
        task.state = state
        if task.number < 0:
            line.parked.pop(task.id, None)
            return 0
        line.ready.take(task.run_s)
        if not line.ready.count:
            line.queue.clear()
            self._waiting.pop(line.name, None)
        return self._turns.leave(task)

    def _forget(self, task: Task) -> None:
        """It will not run now."""
        del self._tasks[task.id]
        if task.state == READY:
            self._unready(task, GONE)
        elif task.state == RUNNING:
            self._end_run(task)
        elif task.state == BLOCKED:
            self._unblock(task)
        task.state = GONE

    def _unblock(self, task: Task) -> None:
        """It waits for others no more."""
        line = task.line
        line.blocked.take(task.run_s)
        if not line.blocked.count:
            del self._blocked[line.name]

    def _end_run(self, task: Task) -> None:
        copy = self._fleet.copies.get(task.server)
        if copy is None:
            return
        copy.running -= 1
        self._ended_since_balance += 1
        if copy.move is not None:
            self._fleet.proceed(copy.move, self._now)
            return
        server, line = copy.server, copy.line
        if server.ready and server.reachable and server.id in line.copies:
            line.open[server.id] = copy
            if line.ready.count:
                self._touched[line.name] = line
            if not copy.running and server.ours and not copy.places[0].device.shared:
                self._fleet.idle[server.id] = copy

    def _completed(self, job: str) -> None:
        task = self._tasks.pop(job, None)
        if task is not None:
            if task.state == RUNNING:
                self._end_run(task)
            elif task.state == READY:
                self._unready(task, GONE)
            elif task.state == BLOCKED:
                self._unblock(task)
            task.state = GONE
        waiters = self._waiters.pop(job, None)
        if waiters is not None:
            for waiter in waiters:
                waiter.missing -= 1
                if not waiter.missing and waiter.state == BLOCKED:
                    self._unblock(waiter)
                    waiter.since = self._now
                    if waiter.is_alone:
                        waiter.arrived, waiter.is_root = self._now, True
                    self._ready(waiter)

    def _other(self, event: Event) -> None:
        fleet, now = self._fleet, self._now
        match event:
            case Withdrawn(job):
                if (task := self._tasks.get(job)) is not None:
                    self._forget(task)
                return
            case Started(job, server):
                self._adopt(job, server)
                return
            case ServerIs(server):
                copy = fleet.server_is(server, now)
                if copy is not None:
                    for task in self._adopted.pop(server.id, ()):
                        copy.running += task.state == RUNNING
                        copy.served = True
                    fleet.settle(copy)
                    if copy.move is not None:
                        fleet.proceed(copy.move, now)
                    if copy.line.ready.count:
                        self._touched[copy.line.name] = copy.line
            case ServerGone(server_id, failed, asleep):
                fleet.server_gone(server_id, failed, now, asleep)
            case HostIs(memory):
                fleet.host.room = memory
            case LoadRefused(model, device):
                fleet.refused(model, device, now)
            case DeviceIs(device):
                fleet.device_is(device)
            case DeviceGone(device_id):
                fleet.device_gone(device_id)
            case ModelIs(model):
                fleet.line(model.name).is_model(model)
            case ModelGone(name):
                fleet.line(name).model = None
            case _:
                pass
        if fleet.cooling:
            fleet.cooling = {key: until for key, until in fleet.cooling.items() if until > now}
        self._fleet_changed = True

    def _adopt(self, job: Job, server: str) -> None:
        if (known := self._tasks.get(job.id)) is not None:
            self._forget(known)
        task = self._tasks[job.id] = Task(job, self._fleet.line(job.model), self._now)
        task.state, task.server = RUNNING, server
        copy = self._fleet.copies.get(server)
        if copy is None:
            self._adopted.setdefault(server, []).append(task)
            return
        copy.running += 1
        copy.served = True
        copy.ends = max(copy.ends, self._now + (task.line.run_s if task.run_s is None else task.run_s))
        self._fleet.settle(copy)

    def _unpark(self) -> None:
        for line in self._fleet.lines.values():
            if line.parked and self._fleet.can_place(line):
                parked, line.parked = line.parked, {}
                for task in parked.values():
                    self._ready(task)
