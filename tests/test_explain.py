"""Explanations over snapshots made by hand: one true reason, each device's verdict, and never another device than the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.cluster import types as cluster_types
from gswarm.codec import from_proto
from gswarm.config import Config
from gswarm.host.state import Entry, State
from gswarm.kinds import BY_MESSAGE, key_of
from gswarm.model import types as model_types
from gswarm.queue import dispatcher, types
from gswarm.queue import plan as planning
from gswarm.queue.explain import Snapshot, explain
from gswarm.queue.types import Explanation, Takes, TaskPhase
from gswarm.scheduler.strategy import Event, Instruction, Strategy
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import Model, ModelVersion, Placement, Service
from gswarm.v1.queue_pb2 import Task

M = TypeVar("M", bound=Message)
T = TypeVar("T")
GIB = 1 << 30
NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def _clock() -> Iterator[None]:
    """It is the snapshot's time for the dispatcher too: it reads the clock for how long a task has waited."""
    clock = SimpleNamespace(time=NOW.timestamp, monotonic=lambda: 1000.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "time", clock)
        yield


def node(name: str = "n1", phase: str = "READY", backends: Sequence[str] = ("simulated", "transformers")) -> Node:
    return Node(name=name, phase=cluster_pb2.NodePhase.Value(f"NODE_PHASE_{phase}"), backends=backends)


def device(alias: str, gib: int = 80, kind: str = "SIMULATED", **more: Any) -> Device:
    kind_ = cluster_pb2.DeviceKind.Value(f"DEVICE_KIND_{kind}")
    made = Device(
        id=f"id-{alias}", alias=alias, node=alias.partition(":")[0], kind=kind_, memory_bytes=gib * GIB, **more
    )
    made.phase = made.phase or cluster_pb2.DEVICE_PHASE_READY
    return made


def model(name: str, gib: int = 16, *, simulated: bool = True) -> Model:
    version = ModelVersion(version="v1", size_bytes=gib * GIB)
    return Model(
        name=name, versions=[version], default_version="v1", simulated=simulated, size_bytes=gib * GIB
    )  # fmt: skip


def stored(name: str, at: str = "n1", phase: str = "STORED") -> Placement:
    phase_ = models_pb2.PlacementPhase.Value(f"PLACEMENT_PHASE_{phase}")
    return Placement(id=f"{name}@v1/{at}", model=name, version="v1", node=at, phase=phase_)


def service(of: str, on: str, phase: str = "READY", *, owner: str = "PLANNER", name: str = "", **more: Any) -> Service:
    values: dict[str, Any] = {"backend": "simulated", "version": "v1", "max_in_flight": 1} | more
    return Service(
        name=name or of, model=of, node=on.partition(":")[0], device_ids=[f"id-{on}"],
        phase=models_pb2.ServicePhase.Value(f"SERVICE_PHASE_{phase}"), owner=common_pb2.Owner.Value(f"OWNER_{owner}"),
        **values,
    )  # fmt: skip


def task(
    number: int, of: str = "a", phase: str = "READY", *, waited: float = 5, rank: str = "NORMAL", **more: Any
) -> Task:
    made = Task(
        id=str(number), workflow_id="w1", action=f"t{number}", type=queue_pb2.TASK_TYPE_INFERENCE, model=of,
        phase=queue_pb2.TaskPhase.Value(f"TASK_PHASE_{phase}"), priority=queue_pb2.Priority.Value(f"PRIORITY_{rank}"),
        **more,
    )  # fmt: skip
    if phase in ("READY", "RUNNING"):
        made.ready_at.FromDatetime(NOW - timedelta(seconds=waited))
    if phase == "RUNNING":
        made.started_at.FromDatetime(NOW - timedelta(seconds=1))
    return made


@dataclass
class Informed:
    """A strategy that hears first what the dispatcher would tell it of the snapshot."""

    inner: Strategy
    events: list[Event]

    def __post_init__(self) -> None:
        self.name, self.wait_bound_s = self.inner.name, self.inner.wait_bound_s

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        first, self.events = self.events, []
        return self.inner.handle(now, [*first, *events])

    def next_tick(self) -> float | None:
        return self.inner.next_tick()

    def passed_over(self, job: str) -> int:
        return self.inner.passed_over(job)


class World:
    """A snapshot from its objects, with the plan that the dispatcher would make of it."""

    def __init__(self, *objects: Message, planned: bool = True) -> None:
        self.state = State()
        for made in objects:
            self.state.load(BY_MESSAGE[type(made)].kind, key_of(made), Entry(made, 1))
        self.plan: queue_pb2.Plan | None = None
        self.lanes: list[queue_pb2.Lane] = []
        if planned:
            self.plan, self.lanes = self._planned()

    def _planned(self) -> tuple[queue_pb2.Plan, list[queue_pb2.Lane]]:
        ready = {n.name for n in self.state.list(Node) if n.phase == cluster_pb2.NODE_PHASE_READY}
        host = SimpleNamespace(
            config=Config(),
            store=SimpleNamespace(state=self.state),
            nodes=SimpleNamespace(connected=lambda name: name in ready),
        )
        live = dispatcher.Dispatcher(cast(Any, host))
        live.take_stock()
        news = live.news()
        view = planning.View(
            now=NOW,
            clock=live.now(),
            devices=self.proto(Device, "id"),
            services={s.name: s for s in self.state.list(Service) if s.name in live.places.servers},
            tasks=live.unfinished,
            servers=live.places.servers,
            taken=live.places.taken(),
            history=live.history,
            strategy=Informed(live.strategy, news),
        )
        return planning.make(view)

    def proto(self, cls: type[M], key: str) -> dict[str, M]:
        return {getattr(made, key): made for made in self.state.list(cls)}

    def rows(self, cls: type[M], into: type[T], key: str) -> dict[str, T]:
        return {name: from_proto(made, into) for name, made in self.proto(cls, key).items()}

    def explain(self, number: int) -> Explanation:
        snapshot = Snapshot(
            now=NOW,
            tasks=self.rows(Task, types.Task, "id"),
            devices=self.rows(Device, cluster_types.Device, "id"),
            nodes=self.rows(Node, cluster_types.Node, "name"),
            models=self.rows(Model, model_types.Model, "name"),
            placements=self.rows(Placement, model_types.Placement, "id"),
            services=self.rows(Service, model_types.Service, "name"),
            lanes={lane.device_id: from_proto(lane, types.Lane) for lane in self.lanes},
            plan=None if self.plan is None else from_proto(self.plan, types.Plan),
        )
        return explain(snapshot.tasks[str(number)], snapshot)

    def verdicts(self, number: int) -> dict[str, tuple[Takes, str]]:
        return {v.device: (v.takes, v.why) for v in self.explain(number).verdicts}

    def planned_on(self, number: int) -> str:
        """The device on which the plan starts a task; empty: on none."""
        blocks = [(lane.alias, block) for lane in self.lanes for block in lane.blocks]
        return next((alias for alias, b in blocks if str(number) in b.task_ids and not b.running), "")

    def agrees(self) -> None:
        """What is planned is explained by the device it is planned on, and what no device takes is not planned."""
        for known in self.state.list(Task):
            if known.phase != queue_pb2.TASK_PHASE_READY:
                continue
            told, planned = self.explain(int(known.id)), self.planned_on(int(known.id))
            assert told.expected_on == planned, told
            takers = [v.device for v in told.verdicts if v.takes is not Takes.NO]
            assert planned in takers if planned else not takers, (planned, told)
            if planned:
                (verdict,) = (v for v in told.verdicts if v.device == planned)
                assert verdict.expected_start == told.expected_start is not None
                assert told.verdicts[0] == verdict, "the device it goes to is named first"
                assert not told.reason.startswith("no device"), told.reason
            else:
                assert told.expected_start is None


ONE = (node(), device("n1:gpu0"), model("a"), stored("a"))
"""A node with one simulated GPU that holds nothing, and a model stored there."""


# What has ended, or runs


def test_what_ended_says_how() -> None:
    world = World(
        *ONE,
        task(1, phase="DONE", node="n1", service="a"),
        task(2, phase="FAILED", detail="not done after 3 s"),
        task(3, phase="CANCELLED", detail="cancelled before it ran"),
        task(4, phase="FAILED", detail="not run: t2 (task 2) failed", depends_on=["2"]),
        task(5, phase="DONE"),
    )
    told = {number: world.explain(number) for number in range(1, 6)}
    assert [told[n].reason for n in told] == [
        "done, on a",
        "not done after 3 s",
        "cancelled before it ran",
        "not run: t2 (task 2) failed",
        "done, on the host",
    ]
    for found in told.values():
        assert (found.verdicts, found.expected_start, found.waits_s) == ((), None, None), "it waits for nothing"


def test_what_runs_says_where() -> None:
    world = World(*ONE, service("a", "n1:gpu0"), task(1, phase="RUNNING", service="a", attempt=2))
    assert world.explain(1).reason == "running on a, attempt 2"
    assert world.explain(1).expected_start is None


# What waits for something else than a device


def test_a_task_waits_for_those_of_its_dependencies_that_are_not_done() -> None:
    world = World(
        *ONE, task(1, phase="DONE"), task(2), task(3, phase="RUNNING"), task(4, phase="WAITING", depends_on=["1", "2", "3"])
    )  # fmt: skip
    assert world.explain(4).reason == "waiting for task 2, 3"
    assert world.planned_on(4) == world.explain(4).expected_on == "", "it cannot be planned yet"


@pytest.mark.parametrize(
    ("seconds", "told"), [(7.5, "tried again in 7.5s"), (90, "tried again in 1m30"), (-1, "due again")]
)
def test_backoff_says_what_failed_and_when_it_is_tried_again(seconds: float, told: str) -> None:
    again = task(1, phase="BACKOFF", attempt=1, retries=2, detail="attempt 1 of 3 failed: the backend answered 500")
    again.retry_at.FromDatetime(NOW + timedelta(seconds=seconds))
    found = World(*ONE, again).explain(1)
    assert found.reason == f"attempt 1 of 3 failed: the backend answered 500; {told}"
    assert found.verdicts == ()


def test_a_task_of_the_hosts_own_needs_no_device() -> None:
    found = World(*ONE, Task(id="1", type=queue_pb2.TASK_TYPE_DOWNLOAD, phase=queue_pb2.TASK_PHASE_READY)).explain(1)
    assert "the host carries it out" in found.reason and found.verdicts == () and found.needs == ""


# What no device takes


def test_a_model_that_is_not_there_or_on_no_node() -> None:
    world = World(node(), device("n1:gpu0"), model("b"), stored("b", phase="DOWNLOADING"), task(1, "a"), task(2, "b"))
    assert world.explain(1).reason.startswith("there is no model a: gswarm model download a")
    assert world.explain(2).reason == "b is stored on no node"
    (verdict,) = world.explain(2).verdicts
    assert (verdict.takes, verdict.why) == (Takes.NO, "b is not stored on n1")
    assert verdict.change.startswith("gswarm model download b --node n1")
    world.agrees()


def test_a_model_stored_elsewhere_only() -> None:
    world = World(*ONE, node("n2"), device("n2:gpu0"), task(1))
    assert world.verdicts(1) == {
        "n1:gpu0": (Takes.COULD, "free 80G, needs a load"),
        "n2:gpu0": (Takes.NO, "a is not stored on n2"),
    }
    assert world.planned_on(1) == "n1:gpu0"
    world.agrees()


def test_a_node_that_cannot_be_reached_takes_nothing() -> None:
    world = World(
        node(phase="UNREACHABLE"), device("n1:gpu0"), model("a"), stored("a"), service("a", "n1:gpu0"),
        node("n2"), device("n2:gpu0"), task(1),
    )  # fmt: skip
    assert world.explain(1).reason == "no device can take a: on n1:gpu0, n1 is unreachable"
    assert world.verdicts(1)["n1:gpu0"] == (Takes.NO, "n1 is unreachable")
    world.agrees()


def test_a_service_out_of_reach_is_not_what_a_task_waits_for() -> None:
    """Another node has the model too: it is loaded there, whatever the silent one still serves."""
    world = World(
        node(phase="UNREACHABLE"), device("n1:gpu0"), service("a", "n1:gpu0"), model("a"), stored("a"),
        node("n2"), device("n2:gpu0"), stored("a", "n2"), task(1),
    )  # fmt: skip
    assert world.explain(1).reason == "a has to be loaded first: n2:gpu0 is free 80G, needs a load"
    assert world.planned_on(1) == "n2:gpu0"
    world.agrees()


def test_a_lost_device_and_a_missing_backend() -> None:
    lost = device("n1:gpu0", phase=cluster_pb2.DEVICE_PHASE_LOST, detail="the driver does not answer")
    world = World(
        node(), lost, node("n2", backends=()), device("n2:gpu0"), model("a"), stored("a"), stored("a", "n2"), task(1)
    )
    assert world.verdicts(1) == {
        "n1:gpu0": (Takes.NO, "lost: the driver does not answer"),
        "n2:gpu0": (Takes.NO, "backend simulated is not installed on n2"),
    }
    world.agrees()


def test_a_service_on_a_device_that_was_lost_serves_no_more() -> None:
    lost = device("n1:gpu0", phase=cluster_pb2.DEVICE_PHASE_LOST, detail="the driver does not answer")
    world = World(node(), lost, model("a"), stored("a"), service("a", "n1:gpu0"), task(1))
    assert world.explain(1).reason == "no device can take a: on n1:gpu0, lost: the driver does not answer"
    world.agrees()
    World(node(), lost, device("n1:gpu1"), model("a"), stored("a"), service("a", "n1:gpu0"), task(1)).agrees()


def test_a_model_larger_than_any_device_names_the_sizes_and_not_what_could_never_serve_it() -> None:
    """The processor comes first by name, but says nothing of why the GPU does not do."""
    world = World(
        node(), device("n1:cpu", 500, "CPU"), device("n1:gpu0"), model("a", 100), stored("a"), task(1),
        node("n0"), device("n0:gpu0"),
    )  # fmt: skip
    assert world.explain(1).reason == "no device can take a: on n1:gpu0, has 80G, 125G are needed"
    assert world.explain(1).needs == "a, 125G on a device"
    assert world.verdicts(1)["n1:cpu"] == (Takes.NO, "a real device; the model is simulated")
    world.agrees()


def test_a_model_too_large_for_one_device_takes_several_of_a_node() -> None:
    world = World(
        node(), *(device(f"n1:gpu{i}") for i in range(3)), device("n1:gpu3", 40), model("a", 100), stored("a"), task(1),
        node("n2"), device("n2:gpu0"), stored("a", "n2"),
    )  # fmt: skip
    told = world.explain(1)
    assert told.needs == "a, 125G on 2 devices of one node"
    assert told.reason == "a has to be loaded first: n1:gpu0 is free 80G, one of 2; needs a load"
    assert told.verdicts[0].change == "gswarm model serve a"
    assert [lane.alias for lane in world.lanes] == ["n1:gpu0", "n1:gpu1"]
    verdicts = world.verdicts(1)
    assert verdicts["n1:gpu2"][0] is Takes.COULD
    assert verdicts["n1:gpu3"] == (Takes.NO, "has 40G, 62G are needed on each of 2 devices")
    assert verdicts["n2:gpu0"] == (Takes.NO, "has 80G, 125G are needed: 2 such devices of one node")
    world.agrees()


def test_several_devices_of_which_a_person_holds_one_cannot_be_had() -> None:
    world = World(
        node(), device("n1:gpu0"), device("n1:gpu1"), model("a", 100), model("b"), stored("a"), stored("b"),
        service("b", "n1:gpu1", owner="USER"), task(1),
    )  # fmt: skip
    assert world.verdicts(1)["n1:gpu0"] == (Takes.NO, "2 devices of n1 are needed, 1 can be had")
    assert world.verdicts(1)["n1:gpu1"] == (Takes.NO, "held by b, which the planner does not stop")
    world.agrees()


def test_several_devices_where_it_failed_are_tried_again_when_the_plan_says_so() -> None:
    failed = service("a", "n1:gpu0", "FAILED")
    failed.device_ids.append("id-n1:gpu1")
    world = World(node(), device("n1:gpu0"), device("n1:gpu1"), model("a", 100), stored("a"), failed, task(1))
    assert world.explain(1).reason == "a has to be loaded first: n1:gpu0 is free 80G, one of 2; needs a load"
    world.agrees()


def test_a_service_on_several_devices_of_which_one_is_lost_holds_the_other() -> None:
    wide = service("a", "n1:gpu0")
    wide.device_ids.append("id-n1:gpu1")
    lost = device("n1:gpu1", phase=cluster_pb2.DEVICE_PHASE_LOST)
    world = World(node(), device("n1:gpu0"), lost, device("n1:gpu2"), model("a", 100), stored("a"), wide, task(1))
    assert world.verdicts(1)["n1:gpu0"] == (Takes.NO, "held by a, which cannot be reached")
    assert world.verdicts(1)["n1:gpu2"] == (Takes.NO, "2 devices of n1 are needed, 1 can be had")
    world.agrees()


def test_a_processor_takes_nothing_that_gpus_can_take_together() -> None:
    real = model("a", 100, simulated=False)
    world = World(
        node(), device("n1:cpu", 500, "CPU"), *(device(f"n1:gpu{i}", 40, "GPU") for i in range(4)), real, stored("a"),
        task(1),
    )  # fmt: skip
    assert world.verdicts(1)["n1:cpu"] == (Takes.NO, "a processor; 4 GPUs of one node take it together")
    assert world.planned_on(1) == "n1:gpu0" and len(world.lanes) == 4
    world.agrees()


def test_a_device_that_a_person_serves_on_is_held_and_says_how_to_free_it() -> None:
    world = World(*ONE, model("b"), service("b", "n1:gpu0", owner="USER", name="mine"), task(1))
    (verdict,) = world.explain(1).verdicts
    assert (verdict.takes, verdict.why) == (Takes.NO, "held by mine, which the planner does not stop")
    assert verdict.change == "gswarm model stop mine"
    assert world.planned_on(1) == ""
    world.agrees()


SHARED = (
    node(), device("n1:cpu", 100, "CPU"), model("a", 40, simulated=False), stored("a"), model("b", 50, simulated=False),
    stored("b"),
)  # fmt: skip
"""A processor of 100 GiB, 90 of them to use: a takes 44, b 55, both together too much."""


def test_no_room_beside_a_persons_service_says_who_holds_it_and_how_much_is_missing() -> None:
    mine = service("b", "n1:cpu", owner="USER", name="mine", backend="transformers")
    world = World(*SHARED, mine, task(1))
    (verdict,) = world.explain(1).verdicts
    assert (verdict.takes, verdict.why) == (Takes.NO, "free 35G, 9.0G too little; held by mine")
    assert verdict.change == "gswarm model stop mine"
    world.agrees()


def test_the_planners_own_service_makes_room() -> None:
    world = World(*SHARED, service("b", "n1:cpu", backend="transformers"), task(1))
    assert world.verdicts(1) == {"n1:cpu": (Takes.COULD, "holds b until its tasks are through or this one is due")}
    assert world.explain(1).reason.startswith("every device that could take a is busy: n1:cpu holds b")
    world.agrees()


def test_room_is_what_the_planner_counts_and_not_what_is_measured() -> None:
    """A backend that has not filled its memory yet measures small; the planner keeps its place for it all the same."""
    mine = service("b", "n1:cpu", owner="USER", name="mine", backend="transformers", memory_bytes=GIB)
    world = World(*SHARED, mine, task(1))
    assert world.verdicts(1)["n1:cpu"][0] is Takes.NO
    world.agrees()


def test_where_there_is_room_beside_it_both_are_served() -> None:
    small = (model("c", 20, simulated=False), stored("c"))
    world = World(*SHARED, *small, service("b", "n1:cpu", owner="USER", backend="transformers"), task(1, "c"))
    assert world.verdicts(1) == {"n1:cpu": (Takes.COULD, "free 35G, needs a load")}
    assert world.planned_on(1) == "n1:cpu"
    world.agrees()


def test_where_it_failed_it_is_not_taken_until_the_plan_tries_again() -> None:
    failed = service("a", "n1:gpu0", "FAILED")
    told = World(*ONE, failed, task(1), planned=False).explain(1)
    assert told.reason == "no device can take a: on n1:gpu0, a failed there"
    assert told.verdicts[0].change == "gswarm model serve a --device n1:gpu0"
    World(*ONE, failed, task(1)).agrees()


# What waits for its turn


def test_a_free_device_loads_the_model_first() -> None:
    world = World(*ONE, task(1, waited=12))
    told = world.explain(1)
    assert told.reason == "a has to be loaded first: n1:gpu0 is free 80G, needs a load"
    assert told.verdicts[0].change == "gswarm model serve a --device n1:gpu0"
    assert (told.waits_s, told.wait_bound_s) == (12, Config().queue.wait_bound_s)
    assert told.expected_start is not None and told.expected_start > NOW
    assert (told.expected_on, told.basis) == ("n1:gpu0", "a guess: no runs of it were seen yet")
    world.agrees()


def test_a_model_that_is_being_loaded_says_so() -> None:
    world = World(*ONE, service("a", "n1:gpu0", "LOADING"), task(1))
    assert world.explain(1).reason == "a is loading on n1"
    assert world.verdicts(1) == {"n1:gpu0": (Takes.YES, "is loading: a")}
    world.agrees()


def test_a_busy_device_says_what_it_is_busy_with() -> None:
    world = World(
        *ONE, model("b"), stored("b"), service("b", "n1:gpu0"), task(1, "b", "RUNNING", service="b"), task(2), task(3, "b")
    )  # fmt: skip
    assert world.explain(2).reason.startswith("every device that could take a is busy: n1:gpu0 holds b until")
    assert world.explain(3).reason == "b is served and busy; 1 of its tasks are before this one"
    world.agrees()


def order(world: World) -> list[int]:
    """Tasks as the plan starts them on the one device there is."""
    (lane,) = world.lanes
    return [int(number) for block in lane.blocks if not block.running for number in block.task_ids]


def test_urgent_tasks_pass_and_each_says_how_many_are_before_it() -> None:
    world = World(
        *ONE, service("a", "n1:gpu0"), task(1, phase="RUNNING", service="a"), task(2, rank="LOW", waited=9),
        task(3, waited=8), task(4, rank="CRITICAL", waited=1), task(5, waited=2), task(6, rank="HIGH", waited=1),
        task(7, "b"), task(8, phase="WAITING", rank="CRITICAL", depends_on=["1"]),
    )  # fmt: skip
    assert order(world) == [4, 8, 6, 3, 5, 2]
    waits = world.explain(8)
    assert waits.reason == "waiting for task 1" and waits.expected_start is not None and waits.expected_on == "n1:gpu0"
    for place, number in enumerate([4, 6, 3, 5, 2]):
        told = world.explain(number).reason
        assert told == f"a is served and busy; {place + 1} of its tasks are before this one", number
    world.agrees()


def test_a_queue_too_long_to_plan_is_planned_in_part_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = (
        *ONE, service("a", "n1:gpu0"), *(task(n, waited=100 - n) for n in range(1, 9)), task(9, "nowhere"),
        task(10, phase="WAITING", depends_on=["8"]), model("b"), stored("b"), task(11, "b"),
    )  # fmt: skip
    whole = World(*objects).plan
    monkeypatch.setattr(planning, "STEPS", 3)
    part = World(*objects).plan
    assert whole is not None and part is not None
    assert (whole.ready, whole.blocked, whole.waiting, whole.beyond) == (10, 1, 1, 0)
    assert (part.ready, part.blocked, part.waiting, part.beyond) == (10, 1, 1, 6), "what comes later is not blocked"
    assert part.done_at.ToDatetime() < whole.done_at.ToDatetime()
    told = [types.PlanView(from_proto(plan, types.Plan), ()).lines()[0] for plan in (whole, part)]
    assert "; done about " in told[0] and "after that" not in told[0]
    assert "; planned to " in told[1] and told[1].endswith(", 6 tasks after that") and "done" not in told[1]


def test_a_task_that_has_waited_for_its_bound_is_passed_over_no_more() -> None:
    bound = Config().queue.wait_bound_s
    world = World(
        *ONE, service("a", "n1:gpu0"), task(1, phase="RUNNING", service="a"), task(2, rank="CRITICAL"),
        task(3, rank="LOW", waited=bound + 30), task(4, rank="LOW", waited=bound + 60),
    )  # fmt: skip
    assert order(world) == [4, 3, 2]
    told = [world.explain(number).reason for number in order(world)]
    assert told == [f"a is served and busy; {n} of its tasks are before this one" for n in (1, 2, 3)]


def test_the_next_task_of_an_idle_service_is_next() -> None:
    world = World(*ONE, service("a", "n1:gpu0"), task(1))
    assert world.explain(1).reason == "a is served; this task is its next"
    assert world.verdicts(1) == {"n1:gpu0": (Takes.YES, "holds a")}
    world.agrees()


def test_verdicts_stand_soonest_first() -> None:
    world = World(
        *ONE, node("n2"), device("n2:gpu0"), stored("a", "n2"), service("a", "n2:gpu0"), device("n1:cpu", 99, "CPU"), task(1)
    )  # fmt: skip
    assert [v.device for v in world.explain(1).verdicts] == ["n2:gpu0", "n1:gpu0", "n1:cpu"]
    assert world.planned_on(1) == "n2:gpu0"
    world.agrees()


def test_as_text_it_has_the_reason_the_start_and_a_line_a_device() -> None:
    lines = World(*ONE, node("n2"), device("n2:gpu0"), task(1)).explain(1).lines()
    assert lines[0] == "task 1 is ready: a has to be loaded first: n1:gpu0 is free 80G, needs a load"
    assert any(line.startswith("starts ") and "n1:gpu0" in line for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("n1:", "n2:"))] == ["n1:gpu0", "n2:gpu0"]


# Any snapshot


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Message, ...]:
    """Nodes, devices, models, services and tasks, each of which may be in the way of another."""
    objects: list[Message] = []
    devices: list[Device] = []
    names = [f"n{i}" for i in range(1, draw(st.integers(1, 2)) + 1)]
    for name in names:
        backends = draw(st.sampled_from((("simulated", "transformers"), ("simulated",), ())))
        objects.append(node(name, draw(st.sampled_from(("READY", "READY", "READY", "UNREACHABLE"))), backends))
        devices.append(device(f"{name}:cpu", draw(st.sampled_from((30, 100))), "CPU"))
        for i in range(draw(st.integers(0, 4))):
            kind = draw(st.sampled_from(("SIMULATED", "SIMULATED", "GPU")))
            devices.append(device(f"{name}:gpu{i}", draw(st.sampled_from((24, 80))), kind))
            if draw(st.integers(0, 5)) == 0:
                devices[-1].phase = cluster_pb2.DEVICE_PHASE_LOST
    models = {
        name: model(name, draw(st.sampled_from((8, 20, 40, 90))), simulated=draw(st.booleans()))
        for name in ("a", "b", "c")[: draw(st.integers(1, 3))]
    }
    objects += [*devices, *models.values()]
    placed = [(m, n) for m in models for n in names if draw(st.booleans())]
    objects += [stored(m, n, draw(st.sampled_from(("STORED", "STORED", "PENDING")))) for m, n in placed]
    taken: dict[str, int] = {}
    for number in range(draw(st.integers(0, 3))):
        of, on = draw(st.sampled_from([*models.values()])), draw(st.sampled_from(devices))
        needs = of.size_bytes * 5 // 4
        if of.simulated != (on.kind == cluster_pb2.DEVICE_KIND_SIMULATED):
            continue
        if taken.get(on.id, 0) + needs > on.memory_bytes or (
            taken.get(on.id) and on.kind != cluster_pb2.DEVICE_KIND_CPU
        ):
            continue
        phase = draw(st.sampled_from(("READY", "READY", "LOADING", "FAILED", "STOPPED")))
        if phase not in ("FAILED", "STOPPED"):
            taken[on.id] = taken.get(on.id, 0) + needs
        owner = draw(st.sampled_from(("PLANNER", "USER")))
        backend = "simulated" if of.simulated else "transformers"
        objects.append(service(of.name, on.alias, phase, owner=owner, name=f"s{number}", backend=backend))
    serving = [o for o in objects if isinstance(o, Service) and o.phase == models_pb2.SERVICE_PHASE_READY]
    for number in range(1, draw(st.integers(1, 6)) + 1):
        rank = draw(st.sampled_from(("LOW", "NORMAL", "HIGH", "CRITICAL")))
        if serving and draw(st.integers(0, 4)) == 0:
            where = serving.pop()
            objects.append(task(number, where.model, "RUNNING", service=where.name, attempt=1))
        else:
            of_ = draw(st.sampled_from(("a", "b", "c")))
            objects.append(task(number, of_, rank=rank, waited=draw(st.sampled_from((1, 20, 300)))))
    return tuple(objects)


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_no_explanation_contradicts_the_plan(objects: tuple[Message, ...]) -> None:
    world = World(*objects)
    world.agrees()
    for known in world.state.list(Task):
        told = world.explain(int(known.id))
        assert told.reason and "\n" not in told.reason
        if told.phase is TaskPhase.READY:
            assert len(told.verdicts) == world.state.count(Device), "every device says something"
            assert told.lines()
