"""`online` as the live queue drives it: priorities across models, servers out of reach, and a reason for all it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.queue.plan import frozen
from gswarm.scheduler.strategies.online import Online
from gswarm.scheduler.strategy import (
    Arrived,
    Completed,
    Device,
    DeviceGone,
    DeviceIs,
    Event,
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
    Ticked,
    Unload,
    Withdrawn,
    create,
)


def up(model: str, device: str, *, reachable: bool = True, ready: bool = True) -> ServerIs:
    return ServerIs(Server(f"{model}-{device}", model, (device,), 1, ready=ready, ours=True, reachable=reachable))


def devices(count: int) -> list[Event]:
    return [DeviceIs(Device(f"d{n}", 2)) for n in range(count)]


def model(name: str, *where: str, load_s: float = 5.0, run_s: float = 1.0) -> ModelIs:
    return ModelIs(Model(name, 1, where, load_s=load_s, run_s=run_s))


def jobs(name: str, count: int, rank: Rank = Rank.NORMAL) -> list[Event]:
    return [Arrived(Job(f"{name}{n}", name, rank)) for n in range(count)]


def starts(out: Sequence[Instruction]) -> list[str]:
    return [order.job for order in out if isinstance(order, Start)]


@pytest.mark.parametrize(("learned_s", "loads"), [(60.0, 1), (0.01, 0)])
def test_all_that_waits_counts_by_what_is_known_now_of_how_long_it_takes(learned_s: float, loads: int) -> None:
    # Nothing of the model had run when its tasks came; then it is learned, and later another GPU falls free.
    strategy = Online()
    strategy.handle(0, [devices(1)[0], model("a", "d0", "d1", run_s=5.0), up("a", "d0"), *jobs("a", 40)])
    learned = model("a", "d0", "d1", run_s=learned_s)
    for n in range(20):
        strategy.handle(n + 1, [Completed(f"a{n}"), *([learned] if n == 0 else [])])
    out = strategy.handle(30, [*devices(2), Completed("a20")])
    assert sum(isinstance(order, Load) for order in out) == loads


def test_gpus_that_others_are_busy_on_too_are_not_idle() -> None:
    strategy = Online()
    theirs = [Server(f"u-{d}", "u", (d,), 1, ready=True, ours=False) for d in ("d0", "d1")]
    everywhere = ("d0", "d1", "d2")
    models = [model("a", *everywhere), model("b", *everywhere), model("u", *everywhere)]
    servers = [up("b", "d0"), up("b", "d1"), *(ServerIs(server) for server in theirs), up("a", "d2")]
    strategy.handle(0, [*devices(3), *models, *servers, *jobs("u", 2)])
    out = strategy.handle(1, jobs("a", 40))
    assert starts(out) == ["a0"] and not [order for order in out if isinstance(order, Load | Unload)]


def test_any_number_of_due_tasks_that_no_device_can_take_stand_aside() -> None:
    strategy = Online(wait_bound_s=5)
    strategy.handle(0, [*devices(2), model("far", "d0"), model("near", "d1"), up("far", "d0", ready=False)])
    strategy.handle(1, [up("near", "d1"), *jobs("far", 3000), *jobs("near", 1)])
    strategy.handle(6.5, [ServerGone("far-d0", failed=True), *jobs("near", 2)[1:]])
    assert starts(strategy.handle(6.6, [Completed("near0")])) == ["near1"]


def test_a_copy_decides_as_the_strategy_would_and_asks_nothing_of_it() -> None:
    strategy = Online(wait_bound_s=5)
    strategy.handle(0, [*devices(2), model("a", "d0"), model("b", "d1"), *jobs("a", 5), *jobs("b", 5)])
    copied = frozen(strategy)()
    assert isinstance(copied, Online) and copied._fleet.host._asked.__self__ is copied._fleet  # type: ignore[attr-defined]
    then: list[Event] = [up("a", "d0"), up("b", "d1")]
    assert copied.handle(1, then) == strategy.handle(1, then)
    copied.handle(2, [Completed("a0"), Completed("b0")])
    assert starts(strategy.handle(2, [Completed("a0")])) == ["a1"]


# Servers out of reach


def test_a_server_out_of_reach_serves_no_one_and_another_is_loaded() -> None:
    strategy = Online()
    strategy.handle(0, [*devices(2), model("a", "d0", "d1"), up("a", "d0", reachable=False)])
    assert strategy.handle(1, jobs("a", 1)) == [Load("a", ("d1",))]
    assert starts(strategy.handle(2, [up("a", "d0")])) == ["a0"]


@pytest.mark.parametrize("claimed", [False, True])
def test_who_can_only_go_where_a_server_is_out_of_reach_stops_no_one_else(claimed: bool) -> None:
    strategy = Online(max_passed=4)
    strategy.handle(0, [*devices(2), model("a", "d0"), model("b", "d0"), model("c", "d1"), up("c", "d1")])
    if claimed:  # b has claimed the GPU, which is busy
        strategy.handle(0, [up("a", "d0"), *jobs("a", 2)])
        strategy.handle(0, [Arrived(Job("b0", "b", Rank.CRITICAL))])
        assert strategy._fleet.places["d0"].move is not None
        strategy.handle(0, [up("a", "d0", reachable=False)])
    else:
        strategy.handle(0, [up("a", "d0", reachable=False), *jobs("b", 1)])
    out = strategy.handle(1, jobs("c", 1))
    for n in range(1, 20):
        assert starts(out) == [f"c{n - 1}"]
        out = strategy.handle(1 + n, [Completed(f"c{n - 1}"), Arrived(Job(f"c{n}", "c"))])
    # It is in line again as soon as something can be done for it.
    out = strategy.handle(30, [up("a", "d0"), *([Completed("a0")] if claimed else [])])
    assert Unload("a-d0") in out


def test_gpus_whose_server_goes_out_of_reach_are_waited_for_no_longer() -> None:
    strategy = Online()
    strategy.handle(0, [*devices(2), model("a", "d0", "d1"), model("b", "d0", "d1"), up("a", "d0"), up("a", "d1")])
    strategy.handle(1, jobs("a", 40))
    strategy.handle(2, [Arrived(Job("now", "b", Rank.CRITICAL))])  # claims a GPU
    claimed = next(copy for copy in strategy._fleet.copies.values() if copy.move is not None).server.devices[0]
    other = "d1" if claimed == "d0" else "d0"
    strategy.handle(3, [up("a", claimed, reachable=False)])
    running = "a1" if other == "d1" else "a0"
    assert strategy.handle(4, [Completed(running)]) == [Unload(f"a-{other}")]


# Priorities across models (rule 4)


def test_a_higher_priority_of_another_model_goes_next_and_a_lower_one_does_not() -> None:
    for rank, moves in ((Rank.LOW, False), (Rank.NORMAL, False), (Rank.HIGH, True), (Rank.CRITICAL, True)):
        strategy = Online()
        first = [*devices(1), model("a", "d0"), model("b", "d0"), up("a", "d0"), *jobs("a", 9)]
        strategy.handle(0, [*first, Arrived(Job("x", "b", rank))])
        out = strategy.handle(1, [Completed("a0")])
        assert (out == [Unload("a-d0")]) is moves, rank


def test_equal_priorities_do_not_take_gpus_from_each_other() -> None:
    strategy = Online()
    first = [*devices(1), model("a", "d0"), model("b", "d0"), up("a", "d0"), *jobs("a", 9, Rank.HIGH)]
    strategy.handle(0, [*first, Arrived(Job("x", "b", Rank.HIGH))])
    assert starts(strategy.handle(1, [Completed("a0")])) == ["a1"]


def test_a_server_that_was_just_loaded_serves_someone_before_a_higher_priority_takes_it() -> None:
    strategy = Online()
    out = strategy.handle(0, [*devices(1), model("a", "d0"), model("b", "d0"), *jobs("a", 3)])
    assert out == [Load("a", ("d0",))]
    strategy.handle(1, [up("a", "d0", ready=False), Arrived(Job("now", "b", Rank.CRITICAL))])
    assert starts(strategy.handle(5, [up("a", "d0")])) == ["a0"]
    assert strategy.handle(6, [Completed("a0")]) == [Unload("a-d0")]


def test_the_highest_priority_has_the_first_gpu_that_falls_free() -> None:
    strategy = Online()
    first = [*devices(1), *(model(name, "d0") for name in "abc"), up("a", "d0"), *jobs("a", 9)]
    strategy.handle(0, [*first, Arrived(Job("high", "b", Rank.HIGH)), Arrived(Job("top", "c", Rank.CRITICAL))])
    assert strategy.handle(1, [Completed("a0")]) == [Unload("a-d0")]
    assert strategy.handle(2, [ServerGone("a-d0")]) == [Load("c", ("d0",))]


def test_a_server_on_several_gpus_is_ended_once_though_two_want_a_gpu_of_it() -> None:
    strategy = Online()
    wide = ModelIs(Model("w", 1, ("d0", "d1"), load_s=5.0, run_s=1.0, width=2))
    there = ServerIs(Server("both", "w", ("d0", "d1"), 1, ready=True, ours=True))
    strategy.handle(0, [*devices(2), wide, model("a", "d0", "d1"), model("b", "d0", "d1"), there, *jobs("w", 9)])
    strategy.handle(1, [Arrived(Job("a0", "a", Rank.HIGH)), Arrived(Job("b0", "b", Rank.HIGH))])
    assert strategy.handle(2, [Completed("w0")]) == [Unload("both")]
    loads = strategy.handle(3, [ServerGone("both")])
    assert sorted(load.model for load in loads if isinstance(load, Load)) == ["a", "b"]


# What is said, and the bound, for any events


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, int, int, Rank]]:
    """What happens, in order: a job of a model, a server out of reach and back, a start that ends, time."""
    kinds = st.sampled_from(["job", "job", "job", "end", "end", "end", "reach", "withdraw", "rank"])
    step = st.tuples(kinds, st.integers(0, 3), st.integers(0, 2), st.sampled_from(Rank))
    return draw(st.lists(step, min_size=1, max_size=80))


class Live:
    """GPUs, models and servers that do what they are told at once, and an account of who passed whom over."""

    def __init__(self, strategy: Online, width: int) -> None:
        self.strategy, self.now = strategy, 0.0
        self.servers: dict[str, Server] = {}
        self.running: dict[str, str] = {}
        self.ready: dict[str, int] = {}
        """Turn in which each waiting job became ready."""
        self.passes: dict[str, int] = {}
        self.jobs: dict[str, Job] = {}
        self.said: list[Instruction] = []
        self.turn = 0
        self.machines = {"d0": "x", "d1": "x" if width > 2 else "y", "d2": "x"}
        made = [ModelIs(Model(f"m{n}", 1, tuple(self.machines), n, 1.0, w)) for n, w in enumerate((1, 1, 1, width))]
        self.tell([*(DeviceIs(Device(d, 2, machine=machine)) for d, machine in self.machines.items()), *made])

    def tell(self, events: list[Event]) -> None:
        while events:
            self.turn += 1
            self.now += 0.25
            self.ready |= {e.job.id: self.turn for e in events if isinstance(e, Arrived) and e.job.id not in self.ready}
            for event in events:
                if isinstance(event, Withdrawn):
                    self.ready.pop(event.job, None)
            out = self.strategy.handle(self.now, events)
            self.said += out
            # Those for whom nothing can be done are in no line: they begin anew.
            for job in [job for line in self.strategy._fleet.lines.values() for job in line.parked]:
                self.ready[job] = self.turn + 1
                self.passes.pop(job, None)
            events = []
            for order in out:
                match order:
                    case Start(job, server):
                        assert self.servers[server].reachable and server not in self.running.values()
                        turn = self.ready.pop(job)
                        for other, since in self.ready.items():
                            if since < turn:
                                self.passes[other] = self.passes.get(other, 0) + 1
                        self.running[job] = server
                    case Load(model, places):
                        held = {d for s in self.servers.values() for d in s.devices}
                        assert not held & set(places) and len({self.machines[d] for d in places}) == 1
                        made = Server(f"s{len(self.said)}-{places[0]}", model, places, 1, ready=True, ours=True)
                        self.servers[made.id] = made
                        events.append(ServerIs(made))
                    case Unload(server):
                        assert server not in self.running.values() and self.servers[server].reachable
                        del self.servers[server]
                        events.append(ServerGone(server))

    def step(self, kind: str, n: int, model: int, rank: Rank) -> None:
        match kind:
            case "job":
                job = Job(f"j{len(self.jobs)}", f"m{n}", rank)
                self.jobs[job.id] = job
                self.tell([Arrived(job)])
            case "end" if self.running:
                job_id = list(self.running)[n % len(self.running)]
                del self.running[job_id]
                self.tell([Completed(job_id)])
            case "reach" if self.servers:
                known = list(self.servers.values())[n % len(self.servers)]
                changed = replace(known, reachable=not known.reachable)
                self.servers[known.id] = changed
                self.tell([ServerIs(changed)])
            case "withdraw" if self.ready:
                self.tell([Withdrawn(list(self.ready)[n % len(self.ready)])])
            case "rank" if self.ready:
                job_id = list(self.ready)[n % len(self.ready)]
                self.jobs[job_id] = replace(self.jobs[job_id], rank=rank)
                self.tell([Arrived(self.jobs[job_id])])

    def finish(self) -> None:
        """All servers come back, and no more jobs."""
        for known in list(self.servers.values()):
            if not known.reachable:
                self.servers[known.id] = replace(known, reachable=True)
                self.tell([ServerIs(self.servers[known.id])])
        for _ in range(500):
            if self.running:
                job_id = next(iter(self.running))
                del self.running[job_id]
                self.tell([Completed(job_id)])
            else:
                self.tell([Ticked()])


@given(lives(), st.integers(1, 3), st.integers(0, 10))
@settings(max_examples=200, deadline=None)
def test_under_any_priorities_and_failures_all_run_in_the_end_and_the_bound_holds(
    life: list[tuple[str, int, int, Rank]], width: int, max_passed: int
) -> None:
    live = Live(Online(max_passed=max_passed, reasons=True), width)
    for step in life:
        live.step(*step)
    live.finish()
    assert not live.ready and not live.running
    assert max(live.passes.values(), default=0) <= max_passed
    assert all(order.reason for order in live.said if isinstance(order, Start | Load | Unload))


def test_a_wide_model_waits_for_gpus_of_one_machine_though_others_fall_free_sooner() -> None:
    strategy = Online()
    places = [DeviceIs(Device(d, 2, machine=d[0])) for d in ("x0", "y0", "y1")]
    narrow: list[Event] = [model("a", "x0", "y0", "y1"), *(up("a", d) for d in ("x0", "y0", "y1"))]
    strategy.handle(0, [*places, *narrow, *jobs("a", 3)])
    wide = ModelIs(Model("w", 1, ("x0", "y0", "y1"), load_s=5.0, run_s=1.0, width=2))
    strategy.handle(0, [wide, Arrived(Job("w0", "w", Rank.HIGH))])
    assert not strategy.handle(1, [Completed("a0")])  # on x0, which is alone; y0 and y1 are claimed
    out = [*strategy.handle(2, [Completed("a1")]), *strategy.handle(3, [Completed("a2")])]
    assert out == [Unload("a-y0", ""), Unload("a-y1", "")]
    assert strategy.handle(4, [ServerGone("a-y0"), ServerGone("a-y1")]) == [Load("w", ("y0", "y1"), "")]


def test_a_gpu_that_was_away_is_not_free_while_its_server_is_still_there() -> None:
    strategy = Online()
    strategy.handle(0, [*devices(1), model("a", "d0"), up("a", "d0")])
    strategy.handle(1, [up("a", "d0", reachable=False), DeviceGone("d0")])
    strategy.handle(2, [*devices(1), up("a", "d0")])
    assert strategy.handle(3, [model("b", "d0"), *jobs("b", 1)]) == [Unload("a-d0", "")]
    assert strategy.handle(4, [ServerGone("a-d0")]) == [Load("b", ("d0",), "")]


def test_the_live_queue_loads_nothing_for_what_waits_for_others_and_takes_all_in_turn() -> None:
    strategy = create("online", wait_bound_s=60.0)
    first = [*devices(3), model("a", "d0", "d1", "d2"), Arrived(Job("late", "a", needs=frozenset({"gate"})))]
    assert strategy.handle(0, first) == []
    assert strategy.handle(10, [Arrived(Job("early", "a"))]) == [
        Load("a", ("d0",), "1 task waits and it is loaded nowhere")
    ]
    assert starts(strategy.handle(20, [Completed("gate"), up("a", "d0")])) == ["early"]


def test_reasons_are_given_to_the_live_queue() -> None:
    strategy = create("online", wait_bound_s=60.0)
    first = [*devices(1), model("a", "d0"), model("b", "d0"), *jobs("a", 1)]
    (load,) = strategy.handle(0, first)
    assert isinstance(load, Load) and load.reason == "1 task waits and it is loaded nowhere"
