"""An account of its own of who became ready when and who was started when, beside a strategy that is being driven."""

from __future__ import annotations

from collections.abc import Sequence

from gswarm.scheduler.strategy import Arrived, Completed, Event, Instruction, Load, Start, Strategy


class Counting:
    """The strategy, counted."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.name, self.wait_bound_s = strategy, strategy.name, strategy.wait_bound_s
        self.turn = 0
        self.ready_in: dict[str, int] = {}
        """In which turn a job became ready."""
        self.started: list[str] = []
        self.loads = 0
        self.told: dict[str, int] = {}
        """How often it says that a job was passed over."""
        self._needs: dict[str, set[str]] = {}

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """As the strategy does."""
        self.turn += 1
        for event in events:
            if isinstance(event, Arrived):
                self._needs[event.job.id] = set(event.job.needs)
            elif isinstance(event, Completed):
                for needs in self._needs.values():
                    needs.discard(event.job)
        for job, needs in self._needs.items():
            if not needs:
                self.ready_in.setdefault(job, self.turn)
        orders = self.strategy.handle(now, events)
        for order in orders:
            self.loads += isinstance(order, Load)
            if isinstance(order, Start):
                self.started.append(order.job)
                self.told[order.job] = order.passed_over
        return orders

    def next_tick(self) -> float | None:
        """As the strategy does."""
        return self.strategy.next_tick()

    def passed_over(self, job: str) -> int:
        """As the strategy does."""
        return self.strategy.passed_over(job)

    def passes(self) -> dict[str, int]:
        """Per job how many that became ready in a later turn were started before it."""
        return {
            job: sum(self.ready_in[other] > self.ready_in[job] for other in self.started[:place])
            for place, job in enumerate(self.started)
        }
