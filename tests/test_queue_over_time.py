"""What time does to the queue: lost leases are taken back, old workflows leave the watch, the plan on show is renewed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gswarm.host.store import Store
from gswarm.host.transaction import Operation, Transaction
from gswarm.queue import archive, deadlines, shown_plan, transitions
from gswarm.queue.archive import Archive
from gswarm.queue.deadlines import Deadlines
from gswarm.queue.durations import History
from gswarm.queue.shown_plan import PLAN_S, ShownPlan
from gswarm.queue.transitions import DONE, LEASE_S, READY, RUNNING
from gswarm.queue.workflow import build
from gswarm.scheduler import strategy
from gswarm.v1 import agent_pb2, common_pb2, queue_pb2
from gswarm.v1.common_pb2 import Event
from gswarm.v1.queue_pb2 import Plan, Task, Workflow

FLOW = build({"name": "f", "actions": [{"id": "a", "type": "inference", "model": "m", "prompt": "hi"}]})


async def submit(store: Store, count: int) -> None:
    """Workflows of one task each: w1 with task 1, and so on."""
    request = queue_pb2.SubmitRequest(workflows=[FLOW] * count)
    await store.apply(transitions.submit(request, unfinished=0, limit=100), actor="t")


def lease(*task_ids: str) -> Operation[None]:
    def operation(tx: Transaction) -> None:
        for name in task_ids:
            transitions.lease(tx, transitions.edit(tx, name), node="n1", service="s", device_ids=["d"])

    return operation


def finish(task_id: str) -> Operation[int]:
    return lambda tx: transitions.finish(tx, transitions.edit(tx, task_id), DONE, "")


def phases(store: Store) -> list[int]:
    return [task.phase for task in store.state.list(Task)]


async def test_a_lease_lasts_as_long_as_its_agent_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0, time=lambda: 0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(deadlines, "time", clock)
    async with Store(tmp_path) as store:
        await submit(store, 3)
        await store.apply(lease("1", "2", "3"), actor="t")
        kept = Deadlines(store)
        for name in ("1", "2", "3"):
            kept.leased(name)
        kept.expire("3")
        await kept.meet()
        assert phases(store) == [RUNNING, RUNNING, READY], "what never reached its agent is taken back at once"
        kept.forget("3")
        clock.now += LEASE_S - 1
        kept.renew([agent_pb2.TaskAttempt(task_id="1"), agent_pb2.TaskAttempt(task_id="unknown")])
        await kept.meet()
        assert phases(store) == [RUNNING, RUNNING, READY]
        clock.now += 2
        await kept.meet()
        assert phases(store) == [RUNNING, READY, READY]
        lost = store.state.get(Task, "2")
        assert lost is not None and lost.detail == "n1 did not renew its lease" and not lost.node
        told = [(e.subject, e.severity) for e in store.state.list(Event) if e.type == "task.lost"]
        assert told == [("3", common_pb2.SEVERITY_WARNING), ("2", common_pb2.SEVERITY_WARNING)]
        kept.forget("1")
        kept.forget("2")
        clock.now += LEASE_S
        revision = store.state.revision
        await kept.meet()
        assert store.state.revision == revision, "renewing what is not leased begins no lease"


async def test_the_oldest_finished_workflows_leave_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FINISHED_WATCHED", 2)
    async with Store(tmp_path) as store:
        await submit(store, 5)
        old = Archive(store)
        for name in ("4", "1", "3", "2"):  # in this order they end
            await store.apply(finish(name), actor="t")
            workflow = store.state.get(Workflow, f"w{name}")
            assert workflow is not None
            old.learn(workflow)
        await old.tidy(unfinished=1)
        assert [w.id for w in store.state.list(Workflow)] == ["w2", "w3", "w5"]
        assert [t.id for t in store.state.list(Task)] == ["2", "3", "5"]
        assert [t.id for t in await store.archived(Task)] == ["4", "1"]


async def test_a_workflow_that_ended_again_leaves_after_those_that_ended_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FINISHED_WATCHED", 1)
    async with Store(tmp_path) as store:
        await submit(store, 2)
        old = Archive(store)

        async def end(name: str) -> None:
            await store.apply(lambda tx: transitions.cancel(tx, [name]), actor="t")
            workflow = store.state.get(Workflow, f"w{name}")
            assert workflow is not None
            old.learn(workflow)

        await end("1")
        await store.apply(lambda tx: transitions.retry(tx, ["1"]), actor="t")
        await end("2")
        await end("1")
        await old.tidy(unfinished=0)
        assert [w.id for w in store.state.list(Workflow)] == ["w1"]


async def test_a_workflow_put_back_to_work_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FINISHED_WATCHED", 0)
    async with Store(tmp_path) as store:
        await submit(store, 1)
        old = Archive(store)
        await store.apply(lambda tx: transitions.cancel(tx, ["1"]), actor="t")
        ended = store.state.get(Workflow, "w1")
        assert ended is not None
        old.learn(ended)
        await store.apply(lambda tx: transitions.retry(tx, ["1"]), actor="t")
        await old.tidy(unfinished=0)
        assert phases(store) == [READY]


async def test_a_plan_is_shown_anew_when_it_is_outdated_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(shown_plan, "time", clock)
    async with Store(tmp_path) as store:
        shown = ShownPlan(store, strategy.create("online", wait_bound_s=60), History())

        async def ready() -> int:
            await shown.refresh(clock.now, {t.id: t for t in store.state.list(Task)}, {}, frozenset)
            plan = store.state.get(Plan, "plan")
            assert plan is not None
            return plan.ready

        assert await ready() == 0
        await submit(store, 2)
        clock.now += PLAN_S
        assert await ready() == 0, "no one has said that something changed"
        shown.outdated()
        assert await ready() == 2
        await submit(store, 1)
        shown.outdated()
        clock.now += PLAN_S / 2
        assert await ready() == 2, "too soon"
        clock.now += PLAN_S
        assert await ready() == 3
