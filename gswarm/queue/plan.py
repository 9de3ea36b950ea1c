"""The plan: the very strategy object that decides live, copied and run ahead on virtual time with measured durations."""

from __future__ import annotations

import copy
import heapq
import itertools
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import cast

from gswarm.queue.durations import History, kind_of
from gswarm.scheduler.strategy import (
    Completed,
    Event,
    Instruction,
    Load,
    Server,
    ServerGone,
    ServerIs,
    Start,
    Strategy,
    Ticked,
    Unload,
)
from gswarm.v1 import cluster_pb2, queue_pb2
from gswarm.v1.models_pb2 import Service
from gswarm.v1.queue_pb2 import Block, Lane, Plan, Task

IDS_SHOWN = 64
STEPS = 20_000
"""Events of the run ahead at most: a very long queue is planned as far as they reach."""
UNLOAD_S = 1.0
LEAST_S = 0.05
HELD_UP = (queue_pb2.TASK_PHASE_WAITING, queue_pb2.TASK_PHASE_BACKOFF)


@dataclass(frozen=True, slots=True)
class View:
    """What a plan is made from."""

    now: datetime
    clock: float
    """`now` on the strategy's clock, seconds."""
    devices: Mapping[str, cluster_pb2.Device]
    services: Mapping[str, Service]
    tasks: Mapping[str, Task]
    """Unfinished tasks."""
    servers: Mapping[str, Server]
    taken: Set[str]
    """Models that some device takes."""
    history: History
    strategy: Strategy
    """A copy that `make` may run ahead."""


def frozen(strategy: Strategy) -> Callable[[], Strategy]:
    """What makes a copy of a strategy as it is now, in any thread.

    Freezing takes a fifth of copy.deepcopy, and its bytes never leave this process; a strategy from elsewhere that cannot be pickled is copied at once.
    """
    try:
        body = pickle.dumps(strategy, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        copied = copy.deepcopy(strategy)
        return lambda: copied
    return lambda: cast(Strategy, pickle.loads(body))


@dataclass(slots=True)
class _Stint:
    """Tasks of one model that follow each other on one server."""

    model: str
    devices: tuple[str, ...]
    start: float
    end: float
    tasks: list[str] = field(default_factory=list)
    load_s: float = 0.0
    running: bool = False
    runs_seen: int = 0
    reason: str = ""


@dataclass(slots=True)
class _Ahead:
    """The run ahead: a heap of what is to happen, and the stints it makes."""

    view: View
    strategy: Strategy
    heap: list[tuple[float, int, Event]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)
    servers: dict[str, Server] = field(default_factory=dict)
    open: dict[str, _Stint] = field(default_factory=dict)
    done: list[_Stint] = field(default_factory=list)
    loads: int = 0

    def at(self, time: float, event: Event) -> None:
        heapq.heappush(self.heap, (time, next(self.order), event))

    def run(self) -> bool:
        """Whether to the end of the queue."""
        now = self.view.clock
        self.carry_out(now, self.strategy.handle(now, [Ticked()]))
        for _ in range(STEPS):
            tick = self.strategy.next_tick()
            if tick is not None and (not self.heap or tick < self.heap[0][0]):
                if not self.heap and not self.waits():
                    return True
                now = max(now, tick) + 1e-6
                events: list[Event] = [Ticked()]
                if not self.heap and not (found := self.strategy.handle(now, events)):
                    return True  # nothing runs, nothing comes, and time alone changes nothing
                if not self.heap:
                    self.carry_out(now, found)
                    continue
            elif self.heap:
                now, _, event = heapq.heappop(self.heap)
                events = [event]
            else:
                return True
            self.carry_out(now, self.strategy.handle(now, events))
        return False

    def waits(self) -> bool:
        return any(task.phase == queue_pb2.TASK_PHASE_READY for task in self.view.tasks.values())

    def carry_out(self, now: float, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Start():
                    self.start(now, instruction)
                case Load():
                    self.load(now, instruction)
                case Unload():
                    self.servers.pop(instruction.server, None)
                    self.close(instruction.server)
                    self.at(now + UNLOAD_S, ServerGone(instruction.server))

    def close(self, server: str) -> None:
        if (stint := self.open.pop(server, None)) is not None:
            self.done.append(stint)

    def start(self, now: float, order: Start) -> None:
        server = self.servers[order.server]
        run = self.view.history.run(server.model, kind_of(self.view.devices.get(server.devices[0])))
        end = now + max(LEAST_S, run.seconds)
        stint = self.open.get(order.server)
        if stint is not None and stint.running:
            self.close(order.server)
            stint = None
        if stint is None:
            stint = _Stint(server.model, server.devices, now, end, reason=f"{server.model} is loaded there")
            self.open[order.server] = stint
        if not stint.tasks:
            stint.start = now
        stint.tasks.append(order.job)
        stint.end, stint.runs_seen = max(stint.end, end), run.runs_seen
        self.at(end, Completed(order.job))

    def load(self, now: float, order: Load) -> None:
        self.loads += 1
        kind = kind_of(self.view.devices.get(order.devices[0]))
        seconds = self.view.history.load_time(order.model, kind).seconds
        name = f"+{order.model}-{self.loads}"
        slots = next((s.slots for s in self.view.servers.values() if s.model == order.model), 1)
        server = Server(name, order.model, order.devices, slots=slots, ours=True)
        self.servers[name] = server
        stint = _Stint(order.model, order.devices, now + seconds, now + seconds, load_s=seconds, reason=order.reason)
        self.open[name] = stint
        self.at(now, ServerIs(server))
        self.at(now + seconds, ServerIs(replace(server, ready=True)))


def make(view: View) -> tuple[Plan, list[Lane]]:
    """The plan and its lanes, one for each device that runs or is to run something. Blocks for up to some tenths of a second."""
    ahead = _Ahead(view, view.strategy, servers=dict(view.servers))
    _begin_with_running(ahead)
    for server in view.servers.values():
        if not server.ready:
            _begin_with_loading(ahead, server)
    is_whole = ahead.run()
    stints = [s for s in [*ahead.done, *ahead.open.values()] if s.tasks]
    blocks: dict[str, list[Block]] = defaultdict(list)
    for stint in sorted(stints, key=lambda s: s.start):
        for device_id in stint.devices:
            blocks[device_id].append(_block(view, stint))
    lanes = [
        Lane(device_id=d, alias=view.devices[d].alias if d in view.devices else d, blocks=found)
        for d, found in sorted(blocks.items())
    ]
    planned = {task for stint in stints for task in stint.tasks}
    later = set() if is_whole else {t.id for t in _to_start(view) if t.id not in planned and t.model in view.taken}
    return _summary(view, ahead.loads, planned, later, stints), lanes


def _to_start(view: View) -> Iterator[Task]:
    return (t for t in view.tasks.values() if t.model and t.phase in (queue_pb2.TASK_PHASE_READY, *HELD_UP))


def _begin_with_running(ahead: _Ahead) -> None:
    view = ahead.view
    for task in view.tasks.values():
        if task.phase != queue_pb2.TASK_PHASE_RUNNING or task.service not in view.servers:
            continue
        server = view.servers[task.service]
        run = view.history.run(server.model, kind_of(view.devices.get(server.devices[0])))
        began = view.clock - (view.now - task.started_at.ToDatetime(view.now.tzinfo)).total_seconds()
        end = max(view.clock + LEAST_S, began + run.seconds)
        stint = ahead.open.setdefault(
            task.service,
            _Stint(server.model, server.devices, began, end, running=True, reason=f"running on {task.service}"),
        )
        stint.tasks.append(task.id)
        stint.start, stint.end, stint.runs_seen = min(stint.start, began), max(stint.end, end), run.runs_seen
        ahead.at(end, Completed(task.id))


def _begin_with_loading(ahead: _Ahead, server: Server) -> None:
    view = ahead.view
    service = view.services.get(server.id)
    seconds = view.history.load_time(server.model, kind_of(view.devices.get(server.devices[0]))).seconds
    began = service.changed_at.ToDatetime(view.now.tzinfo) if service is not None else view.now
    left = max(0.5, seconds - (view.now - began).total_seconds())
    ahead.open[server.id] = _Stint(
        server.model,
        server.devices,
        view.clock + left,
        view.clock + left,
        load_s=left,
        reason=f"{server.model} is being loaded there",
    )
    ahead.at(view.clock + left, ServerIs(replace(server, ready=True)))


def _block(view: View, stint: _Stint) -> Block:
    block = Block(
        model=stint.model,
        task_ids=stint.tasks[:IDS_SHOWN],
        count=len(stint.tasks),
        load_s=round(stint.load_s, 1),
        running=stint.running,
        runs_seen=stint.runs_seen,
        reason=stint.reason,
    )
    block.start.FromDatetime(view.now + timedelta(seconds=round(stint.start - view.clock, 1)))
    block.end.FromDatetime(view.now + timedelta(seconds=round(stint.end - view.clock, 1)))
    return block


def first_come_swaps(tasks: Sequence[Task], holding: Sequence[str]) -> int:
    """Loads that first-come-first-served would need: each task in order to the place whose turn it is."""
    held = list(holding) or [""]
    swaps = 0
    for turn, task in enumerate(sorted(tasks, key=lambda t: int(t.id))):
        place = turn % len(held)
        if held[place] != task.model:
            swaps += 1
            held[place] = task.model
    return swaps


def _summary(view: View, loads: int, planned: set[str], later: set[str], stints: Sequence[_Stint]) -> Plan:
    """Tasks that are `later` come after those that are planned; other ready ones no device takes."""
    ready = [t for t in view.tasks.values() if t.phase == queue_pb2.TASK_PHASE_READY]
    waits = [
        (view.now - t.ready_at.ToDatetime(view.now.tzinfo)).total_seconds()
        for t in ready
        if t.HasField("ready_at") and (t.id in planned or t.id in later)  # for what no device takes no bound is kept
    ]
    to_start = [t for t in _to_start(view) if t.id in planned]
    seen = [stint.runs_seen for stint in stints]
    plan = Plan(
        strategy=view.strategy.name,
        swaps=loads,
        swaps_first_come=first_come_swaps(to_start, [server.model for server in view.servers.values()]),
        runs_seen=min(seen, default=0),
        oldest_wait_s=round(max(waits, default=0.0), 1),
        wait_bound_s=view.strategy.wait_bound_s,
        ready=len(ready),
        running=sum(t.phase == queue_pb2.TASK_PHASE_RUNNING for t in view.tasks.values()),
        blocked=sum(bool(t.model) and t.id not in planned and t.id not in later for t in ready),
        waiting=sum(t.phase in HELD_UP for t in view.tasks.values()),
        beyond=len(later),
    )
    plan.made_at.FromDatetime(view.now)
    if stints:
        plan.done_at.FromDatetime(view.now + timedelta(seconds=max(stint.end for stint in stints) - view.clock))
    return plan
