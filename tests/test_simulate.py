"""The simulator itself: what it charges and when, whatever a strategy asks of it; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from gswarm.scheduler.problem import Model, Node, Problem, Request, build
from gswarm.scheduler.simulate import SimulationError, simulate
from gswarm.scheduler.strategies import create
from gswarm.scheduler.strategy import Arrived, Event, Instruction, Load, ServerIs, Start, Ticked
from gswarm.scheduler.validate import validate


class Scripted:
    """A strategy that answers the events of each turn with what a function says."""

    name, wait_bound_s = "scripted", float("inf")

    def __init__(self, answer: Callable[[Event], list[Instruction]], tick: float | None = None) -> None:
        self.answer, self.tick = answer, tick

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """What the function says of each event."""
        if self.tick is not None and now >= self.tick:
            self.tick = None
        return [order for event in events for order in self.answer(event)]

    def next_tick(self) -> float | None:
        """Once, at the time that was given."""
        return self.tick

    def passed_over(self, job: str) -> int:
        """Not counted."""
        return 0


def late(arrival: float) -> Problem:
    """One task of 2 s, known at `arrival`; its model loads for 4 s."""
    return build(
        [Model("m", 1, 16, 4.0)], 1, [Request("a", 0.0, (), ()), Request("r", arrival, (Node("n", 0),), [2.0])]
    )


@pytest.mark.parametrize(("arrival", "start"), [(3.0, 7.0), (10.0, 14.0)])
def test_a_load_made_ahead_of_a_task_is_not_charged_before_the_task_is_known(arrival: float, start: float) -> None:
    problem = late(arrival)
    ready: list[str] = []
    waiting: list[str] = []

    def answer(event: Event) -> list[Instruction]:
        if isinstance(event, Ticked):
            return [Load("m", ("0",))]
        if isinstance(event, ServerIs) and event.server.ready:
            ready.append(event.server.id)
        elif isinstance(event, Arrived):
            waiting.append(event.job.id)
        return [Start(waiting.pop(), ready[0])] if ready and waiting else []

    plan = simulate(problem, Scripted(answer, tick=0.5))
    assert (plan.start[0], plan.end[0], plan.switch_s[0]) == (start, start + 2, 4)
    assert not validate(problem, 1, list(plan.executions(problem)), online=True)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (Load("nothing", ("0",)), "no such model"),
        (Load("m", ("7",)), "no such model or GPU"),
        (Load("m", ("0", "1")), "no such model or GPU"),
        (Start("0", "s9"), "that server is not there"),
    ],
)
def test_what_cannot_be_is_refused_by_name(order: Instruction, told: str) -> None:
    with pytest.raises(SimulationError, match=told):
        simulate(late(0.0), Scripted(lambda event: [order] if isinstance(event, Arrived) else []))


def test_a_strategy_that_does_nothing_is_said_to_stall() -> None:
    with pytest.raises(SimulationError, match=r"stalls at 0 s: 1 tasks are left, the first of them r/n"):
        simulate(late(0.0), Scripted(lambda event: []))


def test_noise_changes_real_times_by_its_share_at_the_most_and_the_same_for_a_seed() -> None:
    requests = [Request(f"r{n}", float(n), (Node("n", 0),), [10.0]) for n in range(30)]
    problem = build([Model("m", 1, 16, 4.0)], 2, requests)
    once, again, other = (simulate(problem, create("fifo"), noise=0.5, seed=seed) for seed in (1, 1, 2))
    took = once.end - once.start
    assert took.min() >= 5 and took.max() <= 15 and len(set(took.tolist())) == 30
    assert (once.end == again.end).all() and not (once.end == other.end).all()
