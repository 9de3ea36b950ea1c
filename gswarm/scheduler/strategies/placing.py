"""Where `online` puts models: its rules 2 to 4, and the claims that they and its bound make; see `online.py`."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from gswarm.scheduler.strategies.intake import Intake
from gswarm.scheduler.strategies.pieces import BLOCKED_PART, Copy, Line, Place, Task, together
from gswarm.scheduler.strategy import Rank

NEAR = 0.5
"""Switch times within which GPUs must fall free to be claimed."""
AHEAD = 0.15
"""Switch times of known work a server from which GPUs that hold nothing get a further copy, within its share."""
AGE = 0.5
"""How much the time that a task has waited adds to the work of its model, where that is nowhere."""
_Idle = tuple[float, int, Place, Line | None]
"""Demand a server of the model there, number, GPU, model."""
BY_WORTH, BY_TIME = itemgetter(0, 1), itemgetter(0, 1, 2)


class Placing(Intake):
    """See the module's docstring."""

    def __init__(
        self,
        wait_bound_s: float,
        wait_weight: float,
        tail_weight: float,
        switch_weight: float,
        demand_weight: float,
        balance_weight: float,
        *,
        reasons: bool,
    ) -> None:
        super().__init__(wait_weight, tail_weight)
        self.wait_bound_s, self.reasons = wait_bound_s, reasons
        self.switch_weight, self.demand_weight, self.balance_weight = switch_weight, demand_weight, balance_weight

    def _is_late(self, task: Task) -> bool:
        return self._now - task.since >= self.wait_bound_s

    # Priorities and claims

    def _outrank(self) -> None:
        """Rule 4."""
        ranked = [(line.rank(), line) for line in self._waiting.values() if not line.supply and not line.draining()]
        for rank, line in sorted(ranked, key=lambda r: -r[0]):

            def may_take(copy: Copy, rank: int = rank) -> bool:
                top = copy.line.top()
                return top is None or (copy.served and copy.line.rank() < rank and not self._is_late(top[3]))

            if rank > Rank.LOW and line.model is not None:
                self._claim(line, may_take, f"a task of priority {Rank(rank).name.lower()} waits")

    def _claim(self, line: Line, may_take: Callable[[Copy], bool], why: str) -> None:
        """Move the model to the GPUs that fall free soonest, those of ours whose server it may take among them.

        Of those that are free now, the ones that hold nothing first.
        """
        found = []
        for place in self._fleet.places.values():
            mine = place.copy
            if place.device.shared or place.move is not None or not self._fleet.takes(line, place):
                continue
            if mine is not None:
                s = mine.server
                # One that takes several GPUs may be leaving already, for a move onto another of them.
                if mine.move is not None or not (s.ours and s.ready and s.reachable and may_take(mine)):
                    continue
            free = max(mine.ends, self._now) if mine and mine.running else self._now
            found.append((free, mine is not None, place.number, place))
        found.sort(key=BY_TIME)
        if chosen := together((f[3] for f in found), line.width):
            self._fleet.begin(line, chosen, why if self.reasons else "", self._now)

    # Loading

    def _load(self) -> None:
        """Rule 2."""
        while True:
            lines = [line for line in self._waiting.values() if self._could_use(line)]
            if not lines:
                return
            idle = self._idle_places()
            if not idle and not self._fleet.shared:
                return
            lines.sort(
                key=lambda line: (
                    -line.rank() if self._ranks_differ else 0,
                    line.supply > 0,
                    -line.ready.seconds(line.run_s),
                )
            )
            if not any(self._load_one(line, idle) for line in lines):
                return

    def _could_use(self, line: Line) -> bool:
        """Whether it asks for another server at all."""
        return line.model is not None and (not line.supply or line.clear_s() > self.demand_weight * line.switch_s)

    def _idle_places(self) -> list[_Idle]:
        fleet = self._fleet
        found: list[_Idle] = [(-1.0, p.number, p, None) for p in fleet.free.values()]
        for copy in fleet.idle.values():
            line = copy.line
            # A GPU that something else is on too, a person's server, would not be free once this one has left.
            if not line.ready.count and all(len(p.copies) == 1 for p in copy.places):
                found += [(line.demand / max(1, line.supply), p.number, p, line) for p in copy.places]
        found.sort(key=BY_WORTH)
        return found

    def _load_one(self, line: Line, idle: list[_Idle]) -> bool:
        fleet, supply = self._fleet, line.supply
        spare: dict[Line | None, bool] | None = None
        """Whose GPUs it may have; None: anyone's."""
        if supply:
            clear_s, switch_s = line.clear_s(), line.switch_s
            if clear_s > self.switch_weight * switch_s:
                why = f"{clear_s:.1f} s of work a server are above {self.switch_weight:g} switches of {switch_s:.1f} s"
            elif clear_s > self.demand_weight * switch_s:
                spare = {other: self._is_due_more(line, other) for other in {f[3] for f in idle}}
                why = f"its share of the GPUs is more than {supply} servers"
            else:
                return False
            if line.is_covered:
                return False
        elif self._load_beside(line):
            return True
        else:
            why = f"{_tasks(line.ready.count)} and it is loaded nowhere"
        good = together(
            (
                place
                for _, _, place, other in idle
                if other is not line and place.move is None and (spare is None or spare[other])
                if fleet.takes(line, place)
            ),
            line.width,
        )
        if not good:
            return False
        drain = line.draining()
        if drain is not None:
            fleet.call_off(drain)
        # One that had to wait could be called off for the next, and that one for it, for ever.
        return fleet.begin(line, good, why if self.reasons else "", self._now).is_fixed

    def _is_due_more(self, line: Line, other: Line | None) -> bool:
        """Whether by its share of the demand the model may have one more server on free GPUs, or on those of another."""
        if other is None:
            return (line.supply + 1) * line.width * self._demand <= len(self._fleet.places) * line.demand
        asked, others = line.demand / line.width / (line.supply + 1), other.demand / other.width
        return other.supply > 1 and asked >= others / other.supply

    def _load_ahead(self) -> None:
        """For tasks that wait for others, on GPUs that hold nothing; one is left for who comes.

        First for models that are nowhere; then further copies of those that have the most known work a server.
        """
        for line in list(self._blocked.values()):
            if not (line.supply or line.ready.count or line.moves):
                self._load_bare(line, f"{_tasks(line.blocked.count)} for others to end, and will need it")
        lines = [line for line in self._blocked.values() if line.supply and line.model and line.draining() is None]
        while lines and len(self._fleet.free) > 1:
            neediest = max(lines, key=self._needs)
            wanted = self._needs(neediest) > AHEAD and self._is_due_more(neediest, None)
            if not wanted or not self._load_bare(neediest, "its share of the GPUs is more, for what is to come"):
                lines.remove(neediest)

    @staticmethod
    def _needs(line: Line) -> float:
        """Switches' worth of known work a server; 0: there is a server for each task."""
        if line.supply >= line.ready.count + line.blocked.count:
            return 0.0
        return line.clear_s(0, BLOCKED_PART) / line.switch_s if line.switch_s else float("inf")

    def _load_bare(self, line: Line, why: str) -> bool:
        places = [p for p in self._fleet.free.values() if self._fleet.takes(line, p)]
        chosen = together(places, line.width) if len(places) > line.width else []
        if chosen:
            self._fleet.begin(line, chosen, why if self.reasons else "", self._now)
        return bool(chosen)

    def _load_beside(self, line: Line) -> bool:
        """On a shared device, beside what is there; what is idle there makes room."""
        fleet = self._fleet
        for place in fleet.shared.values():
            if fleet.takes(line, place) and fleet.has_room(line, place):
                fleet.load_beside(line, place, _tasks(line.ready.count) if self.reasons else "", self._now)
                return True
        for place in fleet.shared.values():
            for copy in place.copies:
                s = copy.server
                can_go = (
                    s.ours and s.ready and not copy.running and not copy.line.ready.count and s.id in copy.line.copies
                )
                if can_go and fleet.takes(line, place) and fleet.has_room(line, place, without=copy):
                    fleet.send_away(copy, f"makes room for {line.name}" if self.reasons else "")
                    return False
        return False

    # Balance

    def _balance(self) -> None:
        """Rule 3, for the model that is worst off."""
        fleet = self._fleet
        self._ended_since_balance = 0
        worst, most, clear_s = None, self.balance_weight, 0.0
        for line in self._waiting.values():
            if line.model is None or line.draining() is not None:
                continue
            its_s = line.clear_s(1, BLOCKED_PART) + (0.0 if line.supply else AGE * self._waited_s(line))
            if its_s > most * line.switch_s and not line.is_covered:
                worst, most, clear_s = line, its_s / line.switch_s if line.switch_s else float("inf"), its_s
        if worst is None:
            return
        left_s = clear_s - self.balance_weight * worst.switch_s
        soon = self._now + NEAR * worst.switch_s
        found: list[tuple[float, bool, int, Place]] = []
        for place in fleet.free.values():
            if fleet.takes(worst, place):
                found.append((self._now, False, place.number, place))
        for line in fleet.lines.values():
            if line is worst or len(line.copies) < 2 or (spare := line.spare(left_s)) < 1:
                continue
            near = []
            for copy in line.copies.values():
                ends = copy.ends if copy.running else self._now
                if copy.served and copy.move is None and copy.server.ours and copy.server.ready and ends <= soon:
                    mine = [p for p in copy.places if not p.device.shared and fleet.takes(worst, p)]
                    near += [(ends, True, p.number, p) for p in mine]
            near.sort(key=BY_TIME)
            found += near[: spare * line.width]
        found.sort(key=BY_TIME)
        if chosen := together((f[3] for f in found), worst.width):
            why = f"{clear_s:.1f} s of work a server, others have {self.balance_weight:g} switches less"
            fleet.begin(worst, chosen, why if self.reasons else "", self._now)

    def _waited_s(self, line: Line) -> float:
        """How long its next task is ready."""
        top = line.top()
        return self._now - top[3].since if top is not None else 0.0


def _tasks(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count} tasks wait"
