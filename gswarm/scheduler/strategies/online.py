"""Drain what is loaded, keep copies in proportion to demand, move GPUs to where the wait is; causal, bounded.

It decides on arrival and completion only. The rules, with weights that are ratios, so that no unit needs tuning. S is
what it costs to switch to a model (load and unload, seconds). A model's *servers* are those that can be reached and stay,
and those that are being loaded; its *clearing time* is the seconds of work of its ready tasks over its servers.

1. *Drain.* A server starts tasks of its model while there are any: by priority; of one priority those first that can still
   meet a deadline, the earliest one first; then the oldest request, which is what the slowest responses ask for. A task
   counts as older by `tail_weight` of the longest path of what waits for it, with S for each change of model on it, so
   that no long chain is left over in the end. One that waits for no other counts as at least `wait_weight` S older, so
   that requests begin early.
2. *Load where it costs nothing.* Idle GPUs go to a model with ready tasks and no server; then to one whose clearing
   time is above `switch_weight` S; then, within its share of the GPUs, to one whose clearing time is above
   `demand_weight` S. The share is that of its demand in all GPU-seconds asked so far, old ones counting less (the mix
   is learned as it goes). Idle GPUs are given up by models with the least demand a server first. GPUs that hold
   nothing go, all but one and ahead of any ready task, to models that are nowhere and whose tasks wait for others, then
   to those within their share that have more than `AHEAD` S of known work a server, and fewer servers than tasks; how
   many of these can run at once is not looked at. Otherwise no model has more servers being loaded than ready tasks.
3. *Balance.* Known work is that of ready tasks and `BLOCKED_PART` of that of tasks that wait for others. A model whose
   known work a server, with one server more, is `balance_weight` S above what others would be left with takes theirs;
   where it is nowhere, its tasks' age counts too, `AGE` times. A wide model claims the GPUs that fall free soonest, if
   they do within `NEAR` S: they are not kept idle for longer than that, and not at all when they are not wanted.
4. *Priorities.* A model that is nowhere, and one of whose ready tasks has more than the lowest priority, claims the GPUs
   that fall free soonest of servers whose waiting tasks all have a lower one, once those servers have run something.

The bound. A ready task is passed over once for each task that became ready later and leaves the line before it, anywhere.
No task is passed over more than `max_passed` times (by default `PASSES_PER_GPU` a GPU, or more where the line is long or
loads dwarf the tasks; the most that this was while it waited): when the oldest was passed over so often, nothing starts
but that task. The oldest one is passed over most, since whoever passes over some task passes over the oldest one too; so
the check before each start bounds all, whatever their width or priority, and whatever was loaded ahead. It comes to its
turn: nothing else starts, so what runs ends; claims of others are called off, and it may claim any GPUs of ours that can
be reached. From half of that on it is *due*: it goes first on its model's next server, or claims the GPUs that fall free
soonest, so that the hard stop is seldom needed. A task also is due when it has waited `wait_bound_s`, but then it takes no
GPUs from a model whose own tasks have waited as long. Tasks that nothing can be done for (their model is not there, or all
it fits on belongs to others or is out of reach) are not in line; they join it anew when something can.

What it knows is kept in `intake.py`, where models go is decided in `placing.py`, and `fleet.py` carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence

from gswarm.scheduler.strategies.intake import FOREVER
from gswarm.scheduler.strategies.pieces import READY, RUNNING, Copy, Line, Task
from gswarm.scheduler.strategies.placing import Placing
from gswarm.scheduler.strategies.turns import PASSES_PER_GPU, PASSES_PER_WAITING
from gswarm.scheduler.strategy import Event, Instruction, Start

PASSES_PER_LOAD = 8
"""Where loads dwarf the tasks: passes for each task that takes as long as loading every model once."""
LOOKED_AT = 8
"""Tasks looked at for one that was known when the load began."""


class Online(Placing):
    """See the module's docstring. Weights are in switch times S of the model in question."""

    name = "online"

    def __init__(
        self,
        wait_bound_s: float = float("inf"),
        *,
        wait_weight: float = 2.0,
        tail_weight: float = 0.7,
        switch_weight: float = 2.0,
        demand_weight: float = 0.3,
        balance_weight: float = 0.5,
        max_passed: int | None = None,
        load_ahead: bool = True,
        reasons: bool = False,
    ) -> None:
        super().__init__(
            wait_bound_s, wait_weight, tail_weight, switch_weight, demand_weight, balance_weight, reasons=reasons
        )
        self._max_passed, self._loads_ahead = max_passed, load_ahead
        self._least_allowed: int | None = None
        """Of `max_passed`, however short the line; None: to be found anew."""
        self._limit = 0
        """`max_passed` in this turn: it is the same from the first start to the last, and asked for at each."""
        self._is_stopped = False
        """Whether the hard stop kept something from starting."""

    # The seam

    @property
    def max_passed(self) -> int:
        """How often a ready task may be passed over."""
        if self._max_passed is not None:
            return self._max_passed
        least = self._least_allowed
        if least is None:
            by_loads = int(PASSES_PER_LOAD * self._fleet.round_of_loads())
            least = self._least_allowed = max(PASSES_PER_GPU * max(1, len(self._fleet.places)), by_loads)
        by_line = PASSES_PER_WAITING * self._turns.longest
        return by_line if by_line > least else least

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """Take in what happened and say what to do."""
        fleet = self._fleet
        out: list[Instruction] = []
        fleet.out = out
        if self.take_in(now, events):
            self._least_allowed = None
        if self._waiting:
            self._limit = limit = self.max_passed
            if self._is_stopped or 2 * self._turns.most_passed >= limit or self.wait_bound_s < FOREVER:
                self._press()
            if not self._is_stopped:
                if self._ranks_differ:
                    self._outrank()
                ended = self._ended_since_balance  # it looks at every model, so not at every event
                if ended >= len(fleet.lines) or ended >= len(fleet.places):
                    self._balance()
            if self._touched:
                self._start_touched()
            if (fleet.free or fleet.idle or fleet.shared) and self._waiting and not self._is_stopped:
                self._load()
                if self._touched:
                    self._start_touched()  # a claim that was called off gave servers back
        else:
            self._touched.clear()
        if self._loads_ahead and self._blocked and fleet.free and not self._is_stopped:
            self._load_ahead()
        return out

    def next_tick(self) -> float | None:
        """When the oldest task comes due by time, or a cooldown ends."""
        if not self._fleet.cooling and self.wait_bound_s == FOREVER:
            return None
        times = [until for until in self._fleet.cooling.values() if until > self._now]
        oldest = self._turns.oldest
        if oldest is not None and self._now < oldest.since + self.wait_bound_s < FOREVER:
            times.append(oldest.since + self.wait_bound_s)
        return min(times, default=None)

    def passed_over(self, job: str) -> int:
        """How often later jobs were started before it."""
        task = self._tasks.get(job)
        return self._turns.passed(task) if task is not None and task.state == READY and task.number >= 0 else 0

    # The bound

    def _press(self) -> None:
        """See to the oldest task if it is due; due ones that no device can take stand aside first, however many."""
        while self._press_oldest():
            pass

    def _press_oldest(self) -> bool:
        """Whether the oldest stood aside, so that another one is the oldest."""
        oldest = self._turns.oldest
        if oldest is None:
            return False
        passed, limit = self._turns.most_passed, self._limit
        counted, late = 2 * passed >= limit, self._now - oldest.since >= self.wait_bound_s
        must_stop = passed >= limit
        if self._is_stopped and not must_stop:
            self._is_stopped = False
            self._touched.update(self._waiting)
        if not (counted or late):
            return False
        line, fleet = oldest.line, self._fleet
        if not line.copies and not line.moves and not fleet.can_place(line):
            self._unready(oldest, READY)
            oldest.number = -1
            line.parked[oldest.id] = oldest
            return True
        if must_stop:
            self._is_stopped = True
            for other in fleet.lines.values():
                drain = other.draining()
                if drain is not None and other is not line:
                    fleet.call_off(drain)
        for copy in line.copies.values():
            if copy.move is not None and not copy.move.is_fixed and counted:
                fleet.call_off(copy.move)  # it would take the server that the task is to run on
        if line.open:
            self._touched[line.name] = line
        if line.supply or line.draining() is not None:
            return False

        def may_take(copy: Copy) -> bool:
            if copy.line.ready.count and not copy.served and not must_stop:
                return False
            top = None if counted else copy.line.top()
            return top is None or not self._is_late(top[3])

        why = f"{oldest.id} is due: passed over {passed} times, ready for {self._now - oldest.since:.1f} s"
        self._claim(line, may_take, why)
        return False

    # Starting

    def _start_touched(self) -> None:
        touched = list(self._touched.values())
        self._touched.clear()
        for line in touched:
            while line.open and line.ready.count:
                if not self._start_next(line):
                    break

    def _start_next(self, line: Line) -> bool:
        turns = self._turns
        copy = next(iter(line.open.values()))
        passed, limit = turns.most_passed, self._limit
        task = None
        if 2 * passed >= limit or self.wait_bound_s < FOREVER:
            oldest = turns.oldest
            assert oldest is not None
            if oldest.line is line and (2 * passed >= limit or self._is_late(oldest)):
                task = oldest
            elif passed >= limit:
                self._is_stopped = True
                return False
        if task is None:
            task = self._take_next(line, copy)
        why = self._why(task) if self.reasons else ""
        passed_over = self._unready(task, RUNNING)
        task.server = copy.server.id
        copy.running += 1
        copy.served = True
        ends = self._now + (line.run_s if task.run_s is None else task.run_s)
        if ends > copy.ends:
            copy.ends = ends
        if copy.running >= copy.server.slots:
            del line.open[copy.server.id]
        self._fleet.idle.pop(copy.server.id, None)
        self._fleet.out.append(Start(task.id, copy.server.id, passed_over, why))
        return True

    def _take_next(self, line: Line, copy: Copy) -> Task:
        """The next to start there, out of the queue."""
        entry = line.take()
        task = entry[3]
        while self._now + (line.run_s if task.run_s is None else task.run_s) > task.due:
            task.due = FOREVER  # it cannot be met any more: the task is like those that have none
            line.push(task, self._order(task))
            entry = line.take()
            task = entry[3]
        if copy.served or task.arrived <= copy.began:
            return task
        # A switch is charged to the first task it serves and may not begin before that is known: take one that was.
        aside = [entry]
        while (found := line.top()) is not None and found[3].arrived > copy.began and len(aside) < LOOKED_AT:
            aside.append(line.take())
        if found is not None and found[3].arrived <= copy.began:
            task = line.take()[3]
        else:
            del aside[0]
        for put_back in aside:
            line.queue.push(put_back)
        return task

    def _why(self, task: Task) -> str:
        waited = self._now - task.since
        order = (
            "the oldest request, or the one with the most to follow, first"
            if not task.is_root
            else "to begin its request"
        )
        return f"{task.line.name} is loaded there; {order}; {task.line.ready.count} in line, ready for {waited:.1f} s"
