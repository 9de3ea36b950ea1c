"""The validator: what is wrong with a plan, by the letter of the cost model. It shares no code with any planner.

It replays the executions in the order of their starts and keeps, per GPU, until when it is taken and what it holds.

The simple model (nothing optional in the problem) is checked to the letter: a task runs once, on a set of as many GPUs
as its model takes, for exactly its seconds over the slowest GPU's speed, after what it needs; its GPUs are taken during
[start - switch, end] and by nothing else; there is no switch where the set holds an intact placement of the model, and
else it takes exactly load time + max over the set of the memory of what the GPU holds / 16. Memory that does not fit its
GPU, GPUs that are not free yet, initial placements and tasks that run already are checked too. A running task may be
left out of a plan; if it is there, it is there as it runs.

A plan does not say what is evicted or put to sleep, so of the rest only what follows from it is checked:

* `shared` (several models on a GPU): a placement is resident from its switch to the end of its last execution that is
  not charged again. All that must be resident at once fits the GPU's memory; a GPU without a known memory holds one
  model at a time. Executions of one placement do not overlap, those of several may. A switch is at least the load.
  What loads in no time at all may have left and come back between any two executions.
* `host_memory_gb` (sleep and wake): a switch is at least the wake time where the model can sleep and an execution of it
  has ended before, else the load time; to that comes what the set holds, each GPU cleared by unload or by sleep, whichever
  is shorter; and it is at most load or wake plus the slowest unload or sleep of what the set holds. An intact placement
  may be charged too: it may have gone to sleep and been woken elsewhere. What was woken (a switch below the load time)
  lay in host memory from when the last of its placements was broken; where several models are on a GPU, from when the
  last of them had no more room beside what must be there. All that must lie there at once fits.

Zero-second executions at one instant on one GPU are legal if they are in some order: they get the order that is best for
the plan, those whose placement is intact first, then by memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, islice, pairwise

from gswarm.scheduler.plan import Execution
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Problem

TOLERANCE_S = 1e-6


class Kind(StrEnum):
    """What can be wrong."""

    GPUS = "wrong number of GPUs"
    UNKNOWN = "unknown task"
    DOUBLED = "task doubled"
    MISSING = "task missing"
    MODEL = "wrong model"
    REPEATED = "GPU named twice"
    RANGE = "no such GPU"
    WIDTH = "wrong width"
    TIME = "impossible time"
    DURATION = "wrong duration"
    RUNNING = "running task changed"
    DEPENDENCY = "dependency"
    ARRIVAL = "before arrival"
    EARLY = "before t = 0"
    NOT_FREE = "GPU not free yet"
    OVERLAP = "overlap"
    UNCHARGED = "switch uncharged"
    BROKEN = "placement broken"
    TOO_SHORT = "switch too short"
    TOO_LONG = "switch too long"
    NEEDLESS = "switch needless"
    MEMORY = "memory exceeded"
    HOST_MEMORY = "host memory exceeded"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong: with which task ("request/node"; empty for the whole plan), and the numbers in words."""

    kind: Kind
    task: str
    message: str

    def __str__(self) -> str:
        return f"{self.task}: {self.kind}: {self.message}" if self.task else f"{self.kind}: {self.message}"


def validate(
    problem: Problem, gpus: int, executions: Sequence[Execution], *, online: bool, limit: int = 20
) -> list[Fault]:
    """The first `limit` faults of a plan for `gpus` GPUs; none: it is valid.

    `online`: neither a start nor a switch may lie before the task's release; else releases are ignored.
    """
    return list(islice(_faults(problem, gpus, executions, online), limit))


@dataclass(slots=True)
class _Run:
    """An execution whose task is known and whose times and GPUs are numbers that can be."""

    task: int
    name: str
    model: int
    gpus: tuple[int, ...]
    start: float
    end: float
    switch: float
    opens: float
    """When the switch begins."""

    @property
    def begins(self) -> str:
        return f"its switch begins at {_s(self.opens)}" if self.switch else f"starts at {_s(self.start)}"


def _faults(problem: Problem, gpus: int, executions: Sequence[Execution], online: bool) -> Iterator[Fault]:
    if gpus != len(problem.gpus):
        yield Fault(Kind.GPUS, "", f"the plan is for {gpus} and the problem has {len(problem.gpus)}")
    runs: list[_Run] = []
    yield from _read(problem, min(gpus, len(problem.gpus)), executions, runs)
    yield from _check_times(problem, runs, online)
    yield from _check_dependencies(problem, runs)
    runs.sort(key=lambda r: r.start)
    yield from _Replay(problem).faults(runs)


def _read(problem: Problem, gpus: int, executions: Sequence[Execution], runs: list[_Run]) -> Iterator[Fault]:
    """Put what can be replayed into `runs`; say what is wrong with each execution by itself.

    A task that runs already is not replayed: it is part of what there is at t = 0.
    """
    numbers = {name: number for number, name in enumerate(problem.requests)}
    first, model = problem.first.tolist(), problem.model.tolist()
    running = {r.task: r for r in problem.running}
    times_planned = [0] * problem.tasks
    for request, node, said, ids, start, end, switch in executions:
        name = f"{request}/{node}"
        number = numbers.get(request)
        if number is None:
            yield Fault(Kind.UNKNOWN, name, f"there is no request {request!r}")
            continue
        try:
            task = problem.nodes.index(node, first[number], first[number + 1])
        except ValueError:
            yield Fault(Kind.UNKNOWN, name, f"request {request} has no node {node!r}")
            continue
        times_planned[task] += 1
        if times_planned[task] == 2:
            yield Fault(Kind.DOUBLED, name, "is planned more than once")
        needed = problem.models[model[task]]
        if said != needed.id:
            yield Fault(Kind.MODEL, name, f"needs {needed.id} and is planned on {said}")
        chosen = tuple(sorted(set(ids)))
        if len(chosen) != len(ids):
            yield Fault(Kind.REPEATED, name, f"its GPUs {list(ids)} are not distinct")
        elif len(ids) != needed.width:
            yield Fault(Kind.WIDTH, name, f"{needed.id} needs {needed.width} GPUs and has {list(ids)}")
        if not chosen:
            continue
        if chosen[0] < 0 or chosen[-1] >= gpus:
            yield Fault(Kind.RANGE, name, f"its GPUs are {list(ids)}; there are 0 to {gpus - 1}")
            continue
        if not (math.isfinite(start) and math.isfinite(end) and math.isfinite(switch)) or switch < 0:
            yield Fault(Kind.TIME, name, f"start {start}, end {end}, switch {switch}: finite, switch not negative")
            continue
        if (known := running.get(task)) is None:
            runs.append(_Run(task, name, model[task], chosen, start, end, switch, start - switch))
        elif chosen != tuple(sorted(known.gpus)) or abs(end - known.end) > TOLERANCE_S or switch > 0:
            words = f"on {list(chosen)} until {_s(end)} with a switch of {_s(switch)}"
            yield Fault(Kind.RUNNING, name, f"runs on {list(known.gpus)} until {_s(known.end)} and is planned {words}")
    for task, count in enumerate(times_planned):
        if not count and task not in running:
            yield Fault(Kind.MISSING, problem.name_of(task), "is not planned")


def _check_times(problem: Problem, runs: Sequence[_Run], online: bool) -> Iterator[Fault]:
    seconds, release = problem.seconds.tolist(), problem.release.tolist()
    speeds = [g.speed for g in problem.gpus]
    free = [g.free_at for g in problem.gpus]
    rooms = [math.inf if g.memory_gb is None else g.memory_gb for g in problem.gpus]
    for run in runs:
        expected = seconds[run.task] / min([speeds[g] for g in run.gpus])
        if abs(run.end - run.start - expected) > TOLERANCE_S:
            yield Fault(Kind.DURATION, run.name, f"takes {_s(expected)} and is planned for {_s(run.end - run.start)}")
        if run.opens < -TOLERANCE_S:
            yield Fault(Kind.EARLY, run.name, run.begins)
        elif run.opens < (late := max([free[g] for g in run.gpus])) - TOLERANCE_S:
            yield Fault(Kind.NOT_FREE, run.name, f"takes {list(run.gpus)} at {_s(run.opens)}; free at {_s(late)}")
        needs = problem.models[run.model].memory_gb
        if needs > (room := min([rooms[g] for g in run.gpus])):
            yield Fault(Kind.MEMORY, run.name, f"needs {needs:g} GB; of {list(run.gpus)} the smallest has {room:g}")
        if online and run.opens < release[run.task] - TOLERANCE_S:
            yield Fault(Kind.ARRIVAL, run.name, f"{run.begins}; it is known from {_s(release[run.task])}")


def _check_dependencies(problem: Problem, runs: Sequence[_Run]) -> Iterator[Fault]:
    ends: list[float | None] = [None] * problem.tasks
    for r in problem.running:
        ends[r.task] = r.end
    for run in runs:
        ends[run.task] = run.end
    first, preds = problem.pred_first.tolist(), problem.preds.tolist()
    for run in runs:
        for pred in preds[first[run.task] : first[run.task + 1]]:
            end = ends[pred]
            if end is not None and run.start < end - TOLERANCE_S:
                needed = problem.name_of(pred)
                yield Fault(Kind.DEPENDENCY, run.name, f"starts at {_s(run.start)}; {needed} ends at {_s(end)}")


@dataclass(slots=True)
class _Placed:
    """A placement, and what is known of it."""

    model: int
    gpus: tuple[int, ...]
    by: str
    """The task that it was loaded for; empty at t = 0."""
    since: float
    until: float
    """End of its last execution."""
    broken: float = math.inf
    """When something else took one of its GPUs."""


@dataclass(frozen=True, slots=True)
class _Waking:
    """A switch that was a waking: when it began, and where the model had been before."""

    run: _Run
    before: tuple[_Placed, ...]


_NOTHING = _Placed(-1, (), "", 0.0, 0.0)


class _Replay:
    """What each GPU does and holds, as one execution after another is taken in."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.memory = [m.memory_gb for m in problem.models]
        self.taken = [(-math.inf, "")] * len(problem.gpus)  # until when, by which task
        self.holds = [_NOTHING] * len(problem.gpus)
        # Placements by model and set, the last one each; and all, for the memory that they take together.
        self.latest: dict[tuple[int, tuple[int, ...]], _Placed] = {}
        self.all: list[_Placed] = []
        # When each model could go to sleep for the first time: what was loaded has run, or is there at t = 0.
        self.rests = {p.model: 0.0 for p in problem.placements}
        self.wakings: list[_Waking] = []
        for placement in problem.placements:
            self._place(placement.model, tuple(sorted(placement.gpus)), "", 0.0)
        model = problem.model.tolist()
        for running in problem.running:
            gpus, name = tuple(sorted(running.gpus)), problem.name_of(running.task)
            placed = self.latest.get((model[running.task], gpus)) or self._place(model[running.task], gpus, "", 0.0)
            placed.until = running.end
            self.rests.setdefault(model[running.task], running.end)
            for gpu in gpus:
                self.taken[gpu] = (running.end, name)

    def faults(self, runs: Sequence[_Run]) -> Iterator[Fault]:
        """Runs are by start."""
        take = self._take_shared if self.problem.shared else self._take
        for _, together in groupby(runs, key=lambda r: r.start):
            group = list(together)
            for run in group if len(group) == 1 else self._in_order(group):
                yield from take(run)
                self.rests[run.model] = min(self.rests.get(run.model, math.inf), run.end)
        if self.problem.shared:
            yield from self._check_memory()
        yield from self._check_host_memory()

    def _in_order(self, group: list[_Run]) -> Iterator[_Run]:
        """Of those that start at one instant: first what ends a switch then, last what goes on."""
        yield from (r for r in group if r.opens < r.start)
        points: dict[tuple[int, tuple[int, ...]], list[_Run]] = {}
        for run in group:
            if run.opens >= run.start >= run.end:
                points.setdefault((run.model, run.gpus), []).append(run)
        # An intact placement changes nothing, so it can only lose by waiting; nor is a switch of 0 s possible where
        # something with memory lies.
        for run in sorted((r[0] for r in points.values()), key=lambda r: (not self._intact(r), self.memory[r.model])):
            yield from points[run.model, run.gpus]
        yield from (r for r in group if r.opens >= r.start and r.end > r.start)

    def _place(self, model: int, gpus: tuple[int, ...], by: str, now: float) -> _Placed:
        placed = _Placed(model, gpus, by, now, now)
        for gpu in gpus:
            if (held := self.holds[gpu]) is not _NOTHING:
                held.broken = min(held.broken, now)
            self.holds[gpu] = placed
        self.latest[model, gpus] = placed
        if self.problem.shared:
            self.all.append(placed)
        return placed

    def _intact(self, run: _Run) -> bool:
        placed = self.holds[run.gpus[0]]
        if placed.model != run.model or placed.gpus != run.gpus:
            return False
        return all(self.holds[gpu] is placed for gpu in run.gpus)

    def _take(self, run: _Run) -> Iterator[Fault]:
        for gpu in run.gpus:
            until, by = self.taken[gpu]
            if run.opens < until - TOLERANCE_S:
                yield Fault(Kind.OVERLAP, run.name, f"{run.begins} on GPU {gpu}, which {by} has until {_s(until)}")
            if run.end >= until:
                self.taken[gpu] = (run.end, run.name)
        if self._intact(run) and not (self.problem.host_memory_gb > 0 and run.switch > TOLERANCE_S):
            if run.switch > TOLERANCE_S:
                model = self.problem.models[run.model].id
                yield Fault(
                    Kind.NEEDLESS, run.name, f"{model} is intact on {list(run.gpus)} and {_s(run.switch)} is charged"
                )
        else:
            yield from self._check_switch(run)
            self._place(run.model, run.gpus, run.name, run.opens)
        self.holds[run.gpus[0]].until = run.end

    def _check_switch(self, run: _Run) -> Iterator[Fault]:
        model = self.problem.models[run.model]
        held = [self.holds[gpu] for gpu in run.gpus]
        most = max([self.memory[h.model] if h is not _NOTHING else 0.0 for h in held])
        low = high = model.load_s + most / UNLOAD_GB_PER_S
        words = f"load {_s(model.load_s)} + unload {most:g} GB / {UNLOAD_GB_PER_S:g}"
        if self.problem.host_memory_gb > 0:
            words = "at least load or wake and the shorter of unload and sleep, at most that and the slowest of them"
            low = self._least_load(run) + max(
                [self._least_clear(h.model) for h in held if h is not _NOTHING], default=0
            )
            away = max([self.problem.models[h.model].sleep_s or 0.0 for h in held if h is not _NOTHING], default=0.0)
            high = max(model.load_s, model.wake_s or 0.0) + max(most / UNLOAD_GB_PER_S, away)
        if run.switch < low - TOLERANCE_S:
            broken = self.latest.get((run.model, run.gpus))
            if broken is not None and any(h is not broken for h in held):
                gpu, taken = next((gpu, h) for gpu, h in zip(run.gpus, held, strict=True) if h is not broken)
                words += f"; {model.id} was there until {taken.by or 'what was loaded at first'} took GPU {gpu}"
            in_part = any(h is broken for h in held)
            kind = Kind.TOO_SHORT if run.switch > TOLERANCE_S else Kind.BROKEN if in_part else Kind.UNCHARGED
            yield Fault(kind, run.name, f"its switch is {_s(run.switch)} and not {_s(low)} ({words})")
        elif run.switch > high + TOLERANCE_S:
            yield Fault(Kind.TOO_LONG, run.name, f"its switch is {_s(run.switch)} and not {_s(high)} ({words})")
        elif run.switch < model.load_s - TOLERANCE_S:
            self._woken(run)

    def _least_load(self, run: _Run) -> float:
        """Seconds to load or, where the model may have gone to sleep, to wake."""
        model = self.problem.models[run.model]
        may_sleep = self.problem.host_memory_gb > 0 and model.sleep_s is not None and model.wake_s is not None
        if may_sleep and self.rests.get(run.model, math.inf) <= run.opens + TOLERANCE_S:
            return min(model.load_s, model.wake_s or 0.0)
        return model.load_s

    def _least_clear(self, number: int) -> float:
        """Seconds in which a GPU is rid of a model at the soonest."""
        model, unload = self.problem.models[number], self.memory[number] / UNLOAD_GB_PER_S
        return unload if model.sleep_s is None or model.wake_s is None else min(unload, model.sleep_s)

    def _woken(self, run: _Run) -> None:
        """Note that the model came from host memory."""
        self.wakings.append(_Waking(run, tuple(p for (m, _), p in self.latest.items() if m == run.model)))

    def _take_shared(self, run: _Run) -> Iterator[Fault]:
        model = self.problem.models[run.model]
        placed = self.latest.get((run.model, run.gpus))
        if placed is not None and run.opens < placed.until - TOLERANCE_S:
            yield Fault(
                Kind.OVERLAP, run.name, f"begins at {_s(run.opens)} while {model.id} is used until {_s(placed.until)}"
            )
        low = self._least_load(run)
        if placed is None or run.switch > TOLERANCE_S or (low <= TOLERANCE_S and run.opens > placed.until):
            if run.switch < low - TOLERANCE_S:
                kind = Kind.TOO_SHORT if run.switch > TOLERANCE_S else Kind.UNCHARGED
                yield Fault(kind, run.name, f"its switch is {_s(run.switch)}; {model.id} takes at least {_s(low)}")
            elif TOLERANCE_S < run.switch < model.load_s - TOLERANCE_S:
                self._woken(run)
            placed = self._place(run.model, run.gpus, run.name, run.opens)
        placed.until = max(placed.until, run.end)

    def _check_memory(self) -> Iterator[Fault]:
        """Whether what must be resident at once fits each GPU."""
        stays: dict[int, list[tuple[float, float, float, str]]] = defaultdict(list)
        for placed in self.all:
            for gpu in placed.gpus:
                stays[gpu].append((placed.since, placed.until, self.memory[placed.model], placed.by))
        for gpu, known in stays.items():
            room = self.problem.gpus[gpu].memory_gb
            if room is None:
                by_start = sorted(known)
                for (_, until, _, _), (since, _, _, by) in pairwise(by_start):
                    if since < until - TOLERANCE_S:
                        yield Fault(
                            Kind.MEMORY,
                            by,
                            f"loads at {_s(since)} on GPU {gpu}, which holds one model until {_s(until)}",
                        )
            elif over := _most_at_once(known, room):
                yield Fault(Kind.MEMORY, over[1], f"GPU {gpu} would hold {over[0]:g} GB; it has {room:g}")

    def _check_host_memory(self) -> Iterator[Fault]:
        room = self.problem.host_memory_gb
        slept = []
        for waking in self.wakings:
            run, model = waking.run, self.problem.models[waking.run.model]
            since = max([self._left(placed, run.opens) for placed in waking.before])
            slept.append((min(since, run.opens), run.opens, model.memory_gb * model.width, run.name))
        if over := _most_at_once(slept, room):
            yield Fault(Kind.HOST_MEMORY, over[1], f"{over[0]:g} GB would sleep at once; it has {room:g}")

    def _left(self, placed: _Placed, by: float) -> float:
        """When a placement left its GPUs at the latest, or `by`."""
        if not self.problem.shared:
            return placed.broken
        for gpu in placed.gpus:
            # Beside what must be there, whatever the plan does not say.
            room = self.problem.gpus[gpu].memory_gb
            left = -math.inf if room is None else room - self.memory[placed.model] + TOLERANCE_S
            changes = []
            for other in self.all:
                since, until = max(other.since, placed.until), other.until - TOLERANCE_S
                if other is not placed and since < min(by, until) and gpu in other.gpus:
                    changes += [(since, self.memory[other.model]), (until, -self.memory[other.model])]
            held = 0.0
            for moment, gb in sorted(changes):
                held += gb
                if gb >= 0 and held > left and moment < by:
                    by = moment
                    break
        return by


def _most_at_once(stays: Sequence[tuple[float, float, float, str]], room: float) -> tuple[float, str] | None:
    """The first time that more than `room` is there: how much, and for which task. Stays are from, to, GB, task."""
    # What ends by a moment leaves before what begins then; what has no length is there by itself, between the two.
    changes = []
    for since, until, gb, by in stays:
        if until - since <= TOLERANCE_S:
            changes.append((since, 1, gb, by))
        else:
            changes += [(since, 2, gb, by), (until - TOLERANCE_S, 0, -gb, by)]
    total = 0.0
    for _, kind, gb, by in sorted(changes):
        if kind and total + gb > room + TOLERANCE_S:
            return total + gb, by
        total += gb if kind != 1 else 0.0
    return None


def _s(seconds: float) -> str:
    """Seconds to the microsecond, without idle zeros."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + " s"
