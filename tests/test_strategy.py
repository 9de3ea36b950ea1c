"""The strategy of the live queue on virtual time: what it promises, for any jobs, models and devices."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.scheduler.strategies.online import Online
from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    Device,
    DeviceIs,
    Event,
    Instruction,
    Job,
    Load,
    LoadRefused,
    Model,
    ModelIs,
    Rank,
    Server,
    ServerGone,
    ServerIs,
    Start,
    Started,
    Ticked,
    Unload,
    Withdrawn,
    create,
)

BOUND_S, MAX_PASSED = 30.0, 8


@dataclass(frozen=True)
class Case:
    """A small world: devices (memory), models (memory, load, run), jobs (arrival, model, rank, needs)."""

    devices: tuple[int, ...]
    models: tuple[tuple[int, float, float], ...]
    jobs: tuple[tuple[float, int, Rank, tuple[int, ...]], ...]
    slots: int = 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    devices = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    times = st.sampled_from((0.0, 0.5, 1.0, 4.0, 9.0))
    models = draw(st.lists(st.tuples(st.integers(1, 4), times, times), min_size=1, max_size=4))
    jobs = []
    for index in range(draw(st.integers(0, 40))):
        arrival = draw(st.sampled_from((0.0, 0.0, 1.0, 5.0, 20.0, 60.0)))
        needs = draw(st.frozensets(st.integers(0, index - 1), max_size=2)) if index else frozenset()
        jobs.append((arrival, draw(st.integers(0, len(models) - 1)), draw(st.sampled_from(Rank)), tuple(sorted(needs))))
    return Case(tuple(devices), tuple(models), tuple(jobs), draw(st.integers(1, 3)))


@dataclass
class World:
    """Carries out what the strategy says, on virtual time, and writes down what happened."""

    case: Case
    strategy: Online
    servers: dict[str, Server] = field(default_factory=dict)
    log: list[tuple[float, Instruction]] = field(default_factory=list)
    started: dict[str, tuple[float, int]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)
    running: dict[str, set[str]] = field(default_factory=dict)
    check: Callable[[World, float], None] | None = None
    _heap: list[tuple[float, int, Event]] = field(default_factory=list)
    _count: int = 0

    def at(self, time: float, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, event))

    def run(self) -> None:
        for n, memory in enumerate(self.case.devices):
            self.at(0.0, DeviceIs(Device(f"d{n}", memory)))
        for n, (memory, load, run) in enumerate(self.case.models):
            places = tuple(f"d{i}" for i, size in enumerate(self.case.devices) if size >= memory)
            self.at(0.0, ModelIs(Model(f"m{n}", memory, places, load, run)))
        for n, (arrival, model, rank, needs) in enumerate(self.case.jobs):
            self.at(arrival, Arrived(Job(f"j{n}", f"m{model}", rank, frozenset(f"j{i}" for i in needs))))
        for _ in range(20_000):
            tick = self.strategy.next_tick()
            if not self._heap:
                if tick is None or not self._waits():
                    return
                self.at(tick, Ticked())
            elif tick is not None and tick < self._heap[0][0]:
                self.at(tick, Ticked())
            now = self._heap[0][0]
            events = []
            while self._heap and self._heap[0][0] <= now:
                events.append(heapq.heappop(self._heap)[2])
            events = [e for e in events if not (isinstance(e, ServerIs) and e.server.id not in self.servers)]
            self._note(now, events)
            events = [self._still_needed(e) if isinstance(e, Arrived) else e for e in events]
            for instruction in self.strategy.handle(now, events):
                self._carry_out(now, instruction)
            if self.check is not None:
                self.check(self, now)
        raise AssertionError("it never comes to rest")

    def _still_needed(self, event: Arrived) -> Arrived:
        return Arrived(replace(event.job, needs=frozenset(n for n in event.job.needs if n not in self.ended)))

    def _waits(self) -> bool:
        return len(self.ended) < sum(1 for job in self.possible())

    def possible(self) -> set[str]:
        """Jobs that can run at all: their model fits somewhere, and so for all they need."""
        largest = max(self.case.devices)
        good: set[str] = set()
        for n, (_, model, _, needs) in enumerate(self.case.jobs):
            if self.case.models[model][0] <= largest and all(f"j{i}" in good for i in needs):
                good.add(f"j{n}")
        return good

    def _note(self, now: float, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ServerIs):
                self.servers[event.server.id] = event.server
            elif isinstance(event, Completed):
                self.ended[event.job] = now
                for jobs in self.running.values():
                    jobs.discard(event.job)
        for n, (arrival, _, _, needs) in enumerate(self.case.jobs):
            if f"j{n}" not in self.ready and arrival <= now and all(f"j{i}" in self.ended for i in needs):
                self.ready[f"j{n}"] = now

    def _carry_out(self, now: float, instruction: Instruction) -> None:
        self.log.append((now, instruction))
        match instruction:
            case Start(job, where):
                known = self.servers[where]
                assert job not in self.started, "a job is started twice"
                assert known.ready and known.model == f"m{self.case.jobs[int(job[1:])][1]}"
                assert job in self.ready, "a job is started before what it needs is done"
                self.started[job] = (now, instruction.passed_over)
                self.running[where].add(job)
                assert len(self.running[where]) <= known.slots, "a server has more than it takes at once"
                self.at(now + self.case.models[int(known.model[1:])][2], Completed(job))
            case Load(model, devices):
                memory, load, _ = self.case.models[int(model[1:])]
                for other in self.servers.values():
                    assert not set(devices) & set(other.devices), "a device is given to two"
                assert memory <= self.case.devices[int(devices[0][1:])]
                self._count += 1
                server = Server(f"s{self._count}", model, devices, memory, self.case.slots, ours=True)
                self.servers[server.id] = server
                self.running[server.id] = set()
                self.at(now, ServerIs(server))
                ready = Server(server.id, model, devices, memory, self.case.slots, ready=True, ours=True)
                self.at(now + load, ServerIs(ready))
            case Unload(gone):
                assert not self.running[gone], "a server is ended while it works"
                del self.servers[gone]
                self.at(now + 0.25, ServerGone(gone))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_everything_that_can_run_runs_once_and_after_what_it_needs(case: Case) -> None:
    world = World(case, Online(BOUND_S, max_passed=MAX_PASSED))
    world.run()
    assert world.started.keys() == world.ended.keys() == world.possible()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_no_job_is_passed_over_more_often_than_promised(case: Case) -> None:
    world = World(case, Online(BOUND_S, max_passed=MAX_PASSED))
    world.run()
    assert max((passed for _, passed in world.started.values()), default=0) <= MAX_PASSED


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_same_events_give_the_same_instructions(case: Case) -> None:
    first, second = World(case, Online(BOUND_S, max_passed=MAX_PASSED)), World(
        case, Online(BOUND_S, max_passed=MAX_PASSED)
    )
    first.run()
    second.run()
    assert first.log == second.log


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_device_idles_while_a_job_could_use_it(case: Case) -> None:
    def check(world: World, now: float) -> None:
        if world.strategy._is_stopped:
            return  # all wait for a job that was passed over as often as may be
        waiting = {n for n in world.ready if n not in world.started}
        taken = {device for server in world.servers.values() for device in server.devices}
        copies = world.strategy._fleet.copies
        leaving = {copy.server.id for copy in copies.values() if copy.is_leaving or copy.move is not None}
        for name in waiting:
            model = f"m{case.jobs[int(name[1:])][1]}"
            if any(s.model == model for s in world.servers.values()):
                for server in world.servers.values():
                    known = copies.get(server.id)
                    if server.model == model and known and known.server.ready and server.id not in leaving:
                        assert len(world.running[server.id]) >= server.slots
                continue
            memory = case.models[int(model[1:])][0]
            free = {f"d{i}" for i, size in enumerate(case.devices) if size >= memory} - taken
            gone = {d for copy in copies.values() if copy.is_leaving for d in copy.server.devices}
            assert not free - gone, f"{name} waits, {free} is free"

    World(case, Online(BOUND_S, max_passed=MAX_PASSED), check=check).run()


def _one_gpu(*extra: Event) -> list[Event]:
    models = [ModelIs(Model(name, 1, ("d0",), load_s=5, run_s=1)) for name in ("a", "b")]
    return [DeviceIs(Device("d0", 2)), *models, *extra]


def _up(model: str, **changes: object) -> ServerIs:
    return ServerIs(Server(f"s-{model}", model, ("d0",), 1, ready=True, ours=True, **changes))  # type: ignore[arg-type]


def test_jobs_of_the_loaded_model_go_first_then_one_swap() -> None:
    strategy = Online(60.0)
    jobs = [Arrived(Job(f"{m}{n}", m)) for n in range(3) for m in "ab"]
    order = []
    out = strategy.handle(0, _one_gpu(*jobs))
    swaps = 0
    for time in range(1, 100):
        events: list[Event] = []
        for instruction in out:
            match instruction:
                case Load(model):
                    swaps += 1
                    events.append(_up(model))
                case Start(job):
                    order.append(job)
                    events.append(Completed(job))
                case Unload(server):
                    events.append(ServerGone(server))
        if not (out := strategy.handle(time, events)) and not events:
            break
    assert order == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert swaps == 2


def test_a_job_that_has_waited_for_its_bound_takes_the_device_from_an_endless_stream() -> None:
    strategy = Online(10.0, reasons=True)
    strategy.handle(0, _one_gpu(_up("a"), Arrived(Job("old", "b")), Arrived(Job("a0", "a"))))
    time, running = 0.0, "a0"
    for n in range(1, 100):
        time += 1.0
        out = strategy.handle(time, [Completed(running), Arrived(Job(f"a{n}", "a"))])
        if Unload("s-a", "makes room for b") in out:
            break
        (start,) = [i for i in out if isinstance(i, Start)]
        running = start.job
    assert time == 10.0


def _passes(model: str, strategy: Online) -> int:
    """How many critical jobs of model a start before the old job of this model gets its turn, or the device."""
    strategy.handle(0, _one_gpu(_up("a"), Arrived(Job("first", "a"))))
    strategy.handle(1, [Arrived(Job("old", model, Rank.LOW)), Arrived(Job("c0", "a", Rank.CRITICAL))])
    running = "first"
    for n in range(1, 1000):
        out = strategy.handle(1 + n / 1000, [Completed(running), Arrived(Job(f"c{n}", "a", Rank.CRITICAL))])
        (instruction,) = out
        if isinstance(instruction, Unload) or (isinstance(instruction, Start) and instruction.job == "old"):
            return n - 1
        assert isinstance(instruction, Start)
        running = instruction.job
    raise AssertionError("it is passed over for ever")


@pytest.mark.parametrize("model", ["a", "b"])
def test_an_endless_stream_of_critical_jobs_passes_a_job_over_so_often_and_no_more(model: str) -> None:
    assert 1 <= _passes(model, Online(1e9, max_passed=8)) <= 8


def test_a_critical_job_of_another_model_does_not_wait_for_the_batch() -> None:
    strategy = Online(60.0, reasons=True)
    strategy.handle(0, _one_gpu(_up("a"), *(Arrived(Job(f"a{n}", "a")) for n in range(5))))
    strategy.handle(1, [Arrived(Job("now", "b", Rank.CRITICAL))])
    out = strategy.handle(2, [Completed("a0")])
    assert out == [Unload("s-a", "makes room for b")]


def test_a_users_server_is_never_unloaded() -> None:
    strategy = Online(1.0)
    server = Server("mine", "a", ("d0",), 1, ready=True, ours=False)
    out = strategy.handle(0, _one_gpu(ServerIs(server), Arrived(Job("b0", "b", Rank.CRITICAL))))
    assert out == []
    assert strategy.handle(100, [Ticked()]) == []


def test_an_adopted_job_takes_its_slot() -> None:
    strategy = Online(60.0)
    out = strategy.handle(0, _one_gpu(_up("a"), Started(Job("r", "a"), "s-a"), Arrived(Job("a0", "a"))))
    assert out == []
    assert [i.job for i in strategy.handle(1, [Completed("r")]) if isinstance(i, Start)] == ["a0"]


def test_a_withdrawn_job_never_starts_and_one_that_comes_back_does() -> None:
    strategy = Online(60.0)
    strategy.handle(0, _one_gpu(Arrived(Job("a0", "a"))))
    assert strategy.handle(1, [Withdrawn("a0"), _up("a")]) == []
    assert [i.job for i in strategy.handle(2, [Arrived(Job("a0", "a"))]) if isinstance(i, Start)] == ["a0"]


def test_a_refused_load_is_not_tried_again_at_once() -> None:
    strategy = Online(60.0)
    (load,) = strategy.handle(0, _one_gpu(Arrived(Job("a0", "a"))))
    assert isinstance(load, Load) and load.devices == ("d0",)
    assert strategy.handle(1, [LoadRefused("a", "d0")]) == []
    tick = strategy.next_tick()
    assert tick is not None and tick > 1
    again: list[Instruction] = []
    while not again:
        tick = strategy.next_tick()
        assert tick is not None
        again = strategy.handle(tick, [Ticked()])
    assert isinstance(again[0], Load)


def test_an_unknown_strategy_is_an_error() -> None:
    with pytest.raises(KeyError):
        create("nope", wait_bound_s=1.0)
