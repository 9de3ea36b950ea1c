"""Drives a strategy over a problem on virtual time, charges what the cost model charges, and keeps the plan it makes.

What is held where, and what a load is charged, is in `holding.py`. A load that serves no task is in no plan, so it takes
its time and changes nothing of what later loads are charged.
"""

from __future__ import annotations

import heapq
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.holding import Holding, Placed
from gswarm.scheduler.plan import Plan, from_columns
from gswarm.scheduler.problem import BYTES_PER_GB, Floats, Ints, Problem
from gswarm.scheduler.sizing import Sized, mix_of
from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    Device,
    DeviceIs,
    Drop,
    Event,
    HostIs,
    Instruction,
    Job,
    Load,
    Model,
    ModelIs,
    Rank,
    Server,
    ServerGone,
    ServerIs,
    Start,
    Started,
    Strategy,
    Ticked,
    Unload,
)

IDLE_TICKS = 1000
"""Ticks in a row that may come to nothing while nothing runs and nothing is to come."""


class SimulationError(RuntimeError):
    """A strategy that stalls or asks for what cannot be."""


@dataclass(frozen=True, slots=True)
class Record:
    """Something that happens. `task` is -1 where no task is concerned, `seconds` how long what begins will take."""

    time: float
    kind: str
    """arrival, load, wake, loaded, unload, sleep, drop, start or end."""
    task: int = -1
    model: int = -1
    gpus: tuple[int, ...] = ()
    seconds: float = 0.0
    passed_over: int = 0
    reason: str = ""


def simulate(
    problem: Problem,
    strategy: Strategy,
    *,
    noise: float = 0.0,
    seed: int = 0,
    watch: Callable[[Record], None] | None = None,
) -> Plan:
    """The plan that `strategy` makes of `problem`; see `Simulation`."""
    return Simulation(problem, strategy, noise=noise, seed=seed, watch=watch).run()


class Simulation:
    """One run. A request is told when it arrives, all its tasks at once, with how long each is to take.

    `noise` 0.5 makes real execution and load times differ from what is told by up to 50 % either way, evenly
    distributed, the same for the same seed. Pass `problem.offline()` to have everything told at t = 0.
    """

    def __init__(
        self,
        problem: Problem,
        strategy: Strategy,
        *,
        noise: float = 0.0,
        seed: int = 0,
        watch: Callable[[Record], None] | None = None,
    ) -> None:
        if not 0 <= noise < 1:
            raise SimulationError(f"noise is {noise}; from 0 to below 1")
        self.problem, self.strategy, self.watch = problem, strategy, watch
        self.planning_s = 0.0
        """CPU seconds that the strategy has taken."""
        self.events = 0
        """Events that it was told."""
        self._rng = np.random.default_rng(seed)
        self._noise = noise
        told = problem.seconds
        real = told * (1 + noise * self._rng.uniform(-1, 1, problem.tasks)) if noise else told
        self._told = _floats(told)
        self._real = _floats(real) if noise else self._told
        self._model = _ints(problem.model)
        self._request = _ints(problem.request_column())
        self._release = _floats(problem.release)
        self._succ_first, self._succs = _ints(problem.succ_first), _ints(problem.succs)
        self._pred_first, self._preds = _ints(problem.pred_first), _ints(problem.preds)
        self._missing = _ints(np.diff(problem.pred_first))
        tasks = problem.tasks
        self._where: list[tuple[int, ...]] = [()] * tasks
        self._start, self._end = array("d", [-1.0]) * tasks, array("d", [-1.0]) * tasks
        self._switch = array("d", [0.0]) * tasks
        self._done = bytearray(tasks)
        self._told_of = bytearray(tasks)
        self._models = {m.id: n for n, m in enumerate(problem.models)}
        self._servers: dict[str, Placed] = {}
        self._count = 0
        gpus = len(problem.gpus)
        self._there = bytearray(gpus)
        self._holding = Holding(problem)
        self._on: list[Placed | None] = [None] * tasks
        """Where each task runs or ran."""
        self._due = None if problem.deadline is None else _floats(critical.latest_ends(problem))
        """When each task has to end so that what follows it can be in time; None: there are no deadlines."""
        self._heap: list[tuple[float, int, int, Event]] = []
        """Time, number, task or -1, event."""
        self._seq = 0

    # The loop

    def run(self) -> Plan:
        """Run to the end. Raises SimulationError."""
        if isinstance(self.strategy, Sized):
            self.strategy.size_to(mix_of(self.problem))
        order = _ints(np.argsort(self.problem.release, kind="stable"))
        release, heap, strategy = self._release, self._heap, self.strategy
        now, coming, tasks, idle = 0.0, 0, len(order), 0
        events = self._setting()
        while True:
            while coming < tasks and release[order[coming]] <= now:
                events.append(self._arrival(now, order[coming]))
                coming += 1
            if events:
                self._tell(now, events)
            upcoming = min(
                heap[0][0] if heap else float("inf"), release[order[coming]] if coming < tasks else float("inf")
            )
            tick = strategy.next_tick()
            if tick is not None and tick < upcoming:
                idle = idle + 1 if upcoming == float("inf") else 0
                if all(self._done) or idle > IDLE_TICKS:
                    break
                now, events = max(now, tick), [Ticked()]
                continue
            if upcoming == float("inf"):
                break
            now, events, idle = upcoming, [], 0
            while heap and heap[0][0] <= now:
                _, _, task, event = heapq.heappop(heap)
                events.append(event)
                self._happens(now, task, event)
        if (left := tasks - sum(self._done)) > 0:
            first = self._done.index(0)
            raise SimulationError(
                f"{strategy.name} stalls at {now:g} s: {left} tasks are left, the first of them"
                f" {self.problem.name_of(first)}, and nothing runs or is to come"
            )
        return from_columns(len(self.problem.gpus), self._start, self._end, self._switch, self._where)

    def _tell(self, now: float, events: list[Event]) -> None:
        while events:
            self.events += len(events)
            began = time.process_time()
            instructions = self.strategy.handle(now, events)
            self.planning_s += time.process_time() - began
            events = []
            for instruction in instructions:
                match instruction:
                    case Start():
                        self._begin(now, instruction)
                    case Load():
                        events.append(self._load(now, instruction))
                    case Unload():
                        events.append(self._unload(now, instruction))
                    case Drop():
                        self._drop(now, instruction)

    def _push(self, when: float, task: int, event: Event) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (when, self._seq, task, event))

    def _happens(self, now: float, task: int, event: Event) -> None:
        if isinstance(event, Completed):
            self._done[task] = 1
            placed = self._on[task]
            assert placed is not None
            placed.busy = False
            for n in range(self._succ_first[task], self._succ_first[task + 1]):
                self._missing[self._succs[n]] -= 1
            if self.watch is not None:
                self.watch(Record(now, "end", task, self._model[task], self._where[task]))
        elif isinstance(event, ServerIs):
            server = self._servers[event.server.id]
            server.ready = True
            if self.watch is not None:
                self.watch(Record(now, "loaded", model=server.model, gpus=server.gpus))
        elif isinstance(event, DeviceIs):
            self._there[int(event.device.id)] = 1

    # What is there at first, and what comes

    def _setting(self) -> list[Event]:
        problem = self.problem
        memory = [m.memory_gb for m in problem.models]
        room = [g.memory_gb if g.memory_gb is not None else max(memory, default=0.0) for g in problem.gpus]
        events: list[Event] = []
        for n, gpu in enumerate(problem.gpus):
            shared = problem.shared and gpu.memory_gb is not None
            is_there = DeviceIs(Device(str(n), round(room[n] * BYTES_PER_GB), shared))
            if gpu.free_at > 0:
                self._push(gpu.free_at, -1, is_there)
            else:
                self._there[n] = 1
                events.append(is_there)
        if problem.host_memory_gb:
            events.append(HostIs(round(problem.host_memory_gb * BYTES_PER_GB)))
        for n, m in enumerate(problem.models):
            fitting = tuple(str(g) for g in range(len(room)) if room[g] >= memory[n])
            size = round(memory[n] * BYTES_PER_GB)
            events.append(ModelIs(Model(m.id, size, fitting, m.load_s, 5.0, m.width, m.sleep_s, m.wake_s)))
        sets = dict.fromkeys((p.model, tuple(sorted(p.gpus))) for p in problem.placements)
        sets |= dict.fromkeys((self._model[r.task], tuple(sorted(r.gpus))) for r in problem.running)
        for model, gpus in sets:
            if why := self._holding.why_not(model, gpus):
                raise SimulationError(f"{problem.models[model].id} cannot be on {list(gpus)} at t = 0: {why}")
            placed = self._place(model, gpus, 0.0, woken=False)
            self._holding.served(placed)
            ready_at = max(problem.gpus[g].free_at for g in gpus)
            if ready_at > 0:
                events.append(ServerIs(self._seen(placed, ready=False)))
                self._push(ready_at, -1, ServerIs(self._seen(placed, ready=True)))
            else:
                placed.ready = True
                events.append(ServerIs(self._seen(placed, ready=True)))
        for run in problem.running:
            t, gpus = run.task, tuple(sorted(run.gpus))
            placed = next(p for p in self._servers.values() if (p.model, p.gpus) == (self._model[t], gpus))
            placed.busy = placed.ready = True
            self._on[t] = placed
            self._told_of[t] = 1
            self._where[t], self._end[t] = placed.gpus, run.end
            self._start[t] = run.end - self._told[t] / placed.speed
            events.append(Started(self._job(t), placed.id))
            self._push(run.end, t, Completed(str(t)))
        return events

    def _job(self, task: int) -> Job:
        problem = self.problem
        needs: frozenset[str] = frozenset()
        if self._missing[task]:
            preds = self._preds[self._pred_first[task] : self._pred_first[task + 1]]
            needs = frozenset([str(p) for p in preds if not self._done[p]])
        rank = Rank.NORMAL
        if problem.priority is not None:
            rank = Rank(min(max(int(problem.priority[task]) + Rank.NORMAL, Rank.LOW), Rank.CRITICAL))
        return Job(
            str(task),
            problem.models[self._model[task]].id,
            rank,
            needs,
            0.0,
            self._told[task],
            problem.requests[self._request[task]],
            float("inf") if self._due is None else self._due[task],
        )

    def _arrival(self, now: float, task: int) -> Event:
        if self._told_of[task]:
            return Ticked()  # it runs already
        self._told_of[task] = 1
        if self.watch is not None:
            self.watch(Record(now, "arrival", task, self._model[task], seconds=self._told[task]))
        return Arrived(self._job(task))

    # Instructions

    def _refuse(self, now: float, instruction: Instruction, why: str) -> SimulationError:
        return SimulationError(f"{self.strategy.name} at {now:g} s: {instruction}: {why}")

    def _begin(self, now: float, order: Start) -> None:
        placed = self._servers.get(order.server)
        if placed is None or not placed.ready:
            raise self._refuse(now, order, "that server is not there" if placed is None else "it is not loaded yet")
        t = int(order.job) if order.job.isdecimal() else -1
        if not 0 <= t < len(self._done) or not self._told_of[t]:
            raise self._refuse(now, order, "that task is not there")
        if placed.busy or placed.model != self._model[t]:
            raise self._refuse(now, order, "the server is busy" if placed.busy else "the task needs another model")
        if self._where[t] or self._missing[t]:
            raise self._refuse(now, order, "it was started before" if self._where[t] else "what it needs is not done")
        start = now
        if not placed.used:
            # The switch is charged to this task, and its window may not lie before the task is known.
            start = max(now, self._release[t] + placed.switch_s)
            self._switch[t] = placed.switch_s
            self._holding.served(placed)
        end = start + self._real[t] / placed.speed
        placed.busy = True
        self._on[t] = placed
        self._where[t], self._start[t], self._end[t] = placed.gpus, start, end
        self._push(end, t, Completed(order.job))
        if self.watch is not None:
            seconds = end - start
            self.watch(Record(start, "start", t, placed.model, placed.gpus, seconds, order.passed_over, order.reason))

    def _load(self, now: float, order: Load) -> Event:
        model = self._models.get(order.model, -1)
        if model < 0 or not all(d.isdecimal() and int(d) < len(self._there) for d in order.devices):
            raise self._refuse(now, order, "there is no such model or GPU")
        m = self.problem.models[model]
        gpus = tuple(sorted({int(d) for d in order.devices}))
        if len(gpus) != m.width or len(order.devices) != m.width:
            raise self._refuse(now, order, f"the model takes {m.width} GPUs")
        if early := [g for g in gpus if not self._there[g]]:
            raise self._refuse(now, order, f"GPU {early[0]} is not free yet")
        if why := self._holding.why_not(model, gpus):
            raise self._refuse(now, order, why)
        switch_s, woken = self._holding.charge(model, gpus, now)
        if self._noise and switch_s:
            switch_s *= 1 + self._noise * float(self._rng.uniform(-1, 1))
        placed = self._place(model, gpus, switch_s, woken=woken)
        self._push(now + switch_s, -1, ServerIs(self._seen(placed, ready=True)))
        if self.watch is not None:
            kind = "wake" if woken else "load"
            self.watch(Record(now, kind, model=model, gpus=gpus, seconds=switch_s, reason=order.reason))
        return ServerIs(self._seen(placed, ready=False))

    def _unload(self, now: float, order: Unload) -> Event:
        placed = self._servers.get(order.server)
        if placed is None or placed.busy or not placed.ready:
            why = "that server is not there" if placed is None else "it is busy" if placed.busy else "it is loading"
            raise self._refuse(now, order, why)
        sleep = order.sleep and self._holding.can_sleep(placed)
        del self._servers[placed.id]
        self._holding.remove(placed, sleep=sleep)
        if self.watch is not None:
            kind = "sleep" if sleep else "unload"
            self.watch(Record(now, kind, model=placed.model, gpus=placed.gpus, reason=order.reason))
        return ServerGone(placed.id, asleep=sleep)

    def _drop(self, now: float, order: Drop) -> None:
        model = self._models.get(order.model, -1)
        if model < 0 or not self._holding.drop(model):
            raise self._refuse(now, order, "nothing of it sleeps")
        if self.watch is not None:
            self.watch(Record(now, "drop", model=model, reason=order.reason))

    def _place(self, model: int, gpus: tuple[int, ...], switch_s: float, *, woken: bool) -> Placed:
        self._count += 1
        speed = min(self.problem.gpus[g].speed for g in gpus)
        placed = self._servers[f"s{self._count}"] = Placed(f"s{self._count}", model, gpus, switch_s, speed, woken)
        self._holding.place(placed)
        return placed

    def _seen(self, placed: Placed, *, ready: bool) -> Server:
        m = self.problem.models[placed.model]
        memory = round(m.memory_gb * m.width * BYTES_PER_GB)
        return Server(placed.id, m.id, tuple(map(str, placed.gpus)), memory, 1, ready=ready, ours=True)


def _floats(column: Floats) -> array[float]:
    # Not a list: Python's search for garbage would look at each number of it, again and again.
    return array("d", column.astype(np.float64).tobytes())


def _ints(column: Ints) -> array[int]:
    return array("q", column.astype(np.int64).tobytes())


def perturbed(problem: Problem, plan: Plan) -> Problem:
    """The problem whose execution times are those that `plan` had; a plan made with `noise` keeps the rest of it."""
    speeds = np.asarray([min(problem.gpus[g].speed for g in gpus) for gpus in plan.sets], dtype=np.float64)
    seconds = (plan.end - plan.start) * speeds[plan.where]
    seconds.flags.writeable = False
    return replace(problem, seconds=seconds)
