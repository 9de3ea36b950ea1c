"""The validator's replay of a plan: what each GPU does and holds, what was charged, what memory must have held.

What is checked is said in `validate.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from gswarm.scheduler.faults import TOLERANCE_S, Fault, Kind, Run, in_words
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Problem


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
    loads_by: float = math.inf
    """When its load begins at the latest, whatever else its switch is for; infinite where it has none."""
    broken: float = math.inf
    """When something else took one of its GPUs."""


@dataclass(frozen=True, slots=True)
class _Waking:
    """A switch that was a waking: when it began, and where the model had been before."""

    run: Run
    before: tuple[_Placed, ...]


_NOTHING = _Placed(-1, (), "", 0.0, 0.0)


class Replay:
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

    def faults(self, runs: Sequence[Run]) -> Iterator[Fault]:
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

    def _in_order(self, group: list[Run]) -> Iterator[Run]:
        """Of those that start at one instant: first what ends a switch then, last what goes on."""
        yield from (r for r in group if r.opens < r.start)
        points: dict[tuple[int, tuple[int, ...]], list[Run]] = {}
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

    def _intact(self, run: Run) -> bool:
        placed = self.holds[run.gpus[0]]
        if placed.model != run.model or placed.gpus != run.gpus:
            return False
        return all(self.holds[gpu] is placed for gpu in run.gpus)

    def _take(self, run: Run) -> Iterator[Fault]:
        for gpu in run.gpus:
            until, by = self.taken[gpu]
            if run.opens < until - TOLERANCE_S:
                yield Fault(
                    Kind.OVERLAP, run.name, f"{run.begins} on GPU {gpu}, which {by} has until {in_words(until)}"
                )
            if run.end >= until:
                self.taken[gpu] = (run.end, run.name)
        if self._intact(run) and not (self.problem.host_memory_gb > 0 and run.switch > TOLERANCE_S):
            if run.switch > TOLERANCE_S:
                model = self.problem.models[run.model].id
                yield Fault(
                    Kind.NEEDLESS,
                    run.name,
                    f"{model} is intact on {list(run.gpus)} and {in_words(run.switch)} is charged",
                )
        else:
            yield from self._check_switch(run)
            self._place(run.model, run.gpus, run.name, run.opens)
        self.holds[run.gpus[0]].until = run.end

    def _check_switch(self, run: Run) -> Iterator[Fault]:
        model = self.problem.models[run.model]
        held = [self.holds[gpu] for gpu in run.gpus]
        most = max([self.memory[h.model] if h is not _NOTHING else 0.0 for h in held])
        low = high = model.load_s + most / UNLOAD_GB_PER_S
        words = f"load {in_words(model.load_s)} + unload {most:g} GB / {UNLOAD_GB_PER_S:g}"
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
            yield Fault(kind, run.name, f"its switch is {in_words(run.switch)} and not {in_words(low)} ({words})")
        elif run.switch > high + TOLERANCE_S:
            yield Fault(
                Kind.TOO_LONG, run.name, f"its switch is {in_words(run.switch)} and not {in_words(high)} ({words})"
            )
        elif run.switch < model.load_s - TOLERANCE_S:
            self._woken(run)

    def _least_load(self, run: Run) -> float:
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

    def _woken(self, run: Run) -> None:
        """Note that the model came from host memory."""
        self.wakings.append(_Waking(run, tuple(p for (m, _), p in self.latest.items() if m == run.model)))

    def _take_shared(self, run: Run) -> Iterator[Fault]:
        model = self.problem.models[run.model]
        placed = self.latest.get((run.model, run.gpus))
        if placed is not None and run.opens < placed.until - TOLERANCE_S:
            yield Fault(
                Kind.OVERLAP,
                run.name,
                f"begins at {in_words(run.opens)} while {model.id} is used until {in_words(placed.until)}",
            )
        low = self._least_load(run)
        if placed is None or run.switch > TOLERANCE_S or (low <= TOLERANCE_S and run.opens > placed.until):
            if run.switch < low - TOLERANCE_S:
                kind = Kind.TOO_SHORT if run.switch > TOLERANCE_S else Kind.UNCHARGED
                yield Fault(
                    kind, run.name, f"its switch is {in_words(run.switch)}; {model.id} takes at least {in_words(low)}"
                )
            elif TOLERANCE_S < run.switch < model.load_s - TOLERANCE_S:
                self._woken(run)
            placed = self._place(run.model, run.gpus, run.name, run.opens)
            placed.loads_by = run.start - low
        placed.until = max(placed.until, run.end)

    def _check_memory(self) -> Iterator[Fault]:
        """Whether what must be resident at once fits each GPU, and what must leave has the time to."""
        there: dict[int, list[_Placed]] = defaultdict(list)
        for placed in self.all:
            for gpu in placed.gpus:
                there[gpu].append(placed)
        clear_s = [self._least_clear(m) for m in range(len(self.memory))]
        for gpu, placements in there.items():
            room = self.problem.gpus[gpu].memory_gb
            known = [(p.since, p.until, self.memory[p.model], p.by) for p in placements]
            yield from self._check_clearing(gpu, placements, room or 0.0, clear_s)
            if room is None:
                for by, since, until in _together(known):
                    words = f"loads at {in_words(since)} on GPU {gpu}, which holds one model until {in_words(until)}"
                    yield Fault(Kind.MEMORY, by, words)
            elif over := _most_at_once(known, room):
                yield Fault(Kind.MEMORY, over[1], f"GPU {gpu} would hold {over[0]:g} GB; it has {room:g}")

    def _check_clearing(
        self, gpu: int, placements: list[_Placed], room: float, clear_s: list[float]
    ) -> Iterator[Fault]:
        """Whether what has no room beside a load could be gone by then, after its last execution."""
        by_end = sorted(placements, key=lambda p: p.until)
        ends = [p.until for p in by_end]
        for placed in placements:
            first = bisect_right(ends, placed.loads_by - max(clear_s) + TOLERANCE_S)
            for other in by_end[first : bisect_right(ends, placed.since + TOLERANCE_S)]:
                if other.since > placed.since - TOLERANCE_S:
                    continue  # of no length, and at the same moment: it may have come after
                gone = other.until + clear_s[other.model]
                both = self.memory[other.model] + self.memory[placed.model]
                is_itself = (other.model, other.gpus) == (placed.model, placed.gpus)  # it may have stayed
                if not is_itself and both > room + TOLERANCE_S and gone > placed.loads_by + TOLERANCE_S:
                    known = self.problem.models[other.model].id
                    why = f"{known}, which has no room beside it, is gone from GPU {gpu} at {in_words(gone)} at the soonest"
                    yield Fault(
                        Kind.TOO_SHORT,
                        placed.by,
                        f"its load begins at {in_words(placed.loads_by)} at the latest; {why}",
                    )

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


def _together(stays: Sequence[tuple[float, float, float, str]]) -> Iterator[tuple[str, float, float]]:
    """Stays that begin while another one lasts: of which task, when, and until when the other one lasts."""
    lasting = sorted(stay for stay in stays if stay[1] - stay[0] > TOLERANCE_S)
    for (_, until, _, _), (since, _, _, by) in pairwise(lasting):
        if since < until - TOLERANCE_S:
            yield by, since, until
    # What has no length may come before or after what begins or ends at that moment.
    begins = [since for since, _, _, _ in lasting]
    for since, end, _, by in stays:
        at = bisect_right(begins, since - TOLERANCE_S) - 1
        if end - since <= TOLERANCE_S and at >= 0 and since < (until := lasting[at][1]) - TOLERANCE_S:
            yield by, since, until


def _most_at_once(stays: Sequence[tuple[float, float, float, str]], room: float) -> tuple[float, str] | None:
    """The first time that more than `room` is there: how much, and for which task. Stays are from, to, GB, task."""
    # What ends by a moment leaves before what begins then; what has no length is there by itself, between the two,
    # and a moment is as long as what times may be off by.
    changes = []
    for since, until, gb, by in stays:
        if until - since <= TOLERANCE_S:
            changes.append((since - TOLERANCE_S / 2, 1, gb, by))
        else:
            changes += [(since, 2, gb, by), (until - TOLERANCE_S, 0, -gb, by)]
    total = 0.0
    for _, kind, gb, by in sorted(changes):
        if kind and total + gb > room + TOLERANCE_S:
            return total + gb, by
        total += gb if kind != 1 else 0.0
    return None
