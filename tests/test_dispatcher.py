"""The queue at work: a whole host, an agent with simulated GPUs, and workflows as people write them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from gswarm.cluster.types import Event
from gswarm.config import QueueConfig
from gswarm.data.types import Chunk
from gswarm.errors import ExhaustedError, GswarmError, InvalidError, NotFoundError, RefusedError
from gswarm.host.store import Store
from gswarm.model.types import Placement, Service, ServicePhase, download_done
from gswarm.queue.durations import History
from gswarm.queue.shown_plan import ShownPlan
from gswarm.queue.types import Plan, Task, TaskPhase, Workflow, WorkflowPhase, workflow_done
from gswarm.scheduler import strategy
from gswarm.v1 import agent_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import WatchRequest
from tests.support.cluster import CONFIG, Cluster, cluster, seen


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GSWARM_SHM_DIR", str(tmp_path / "shm"))
    async with cluster(tmp_path / "state") as found:
        yield found


@asynccontextmanager
async def at_work(running: Cluster, *models: str, gpus: int = 1) -> AsyncIterator[None]:
    """A node with simulated GPUs that stores these models, 1 GiB each."""
    async with running.agent("n1", simulate=f"{gpus}xH100"):
        async with running.swarm.mirror() as mirror:
            await seen(mirror, lambda: len(mirror.samples), lambda count: count >= gpus + 1)
        for model in models:
            for placement in await running.swarm.model.download(model, source="simulated:1GiB"):
                await running.swarm.wait(download_done, placement, timeout=30)
        yield


def flow(tmp_path: Path, *actions: dict[str, object], name: str = "flow") -> list[Path]:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"name": name, "actions": list(actions)}))
    return [path]


def ask(id: str, model: str = "a", **more: object) -> dict[str, object]:
    return {"id": id, "type": "inference", "model": model, "prompt": f"Say {id}.", "max_tokens": 3} | more


async def done(running: Cluster, workflows: Iterable[Workflow]) -> dict[str, Task]:
    """Wait for workflows, whatever becomes of them; their tasks by action."""
    async with running.swarm.mirror((Workflow, Task), samples=False) as mirror:
        for workflow in workflows:
            await seen(
                mirror,
                lambda key=workflow.id: mirror.rows(Workflow).get(key),  # type: ignore[misc]
                lambda now: now is not None and now.phase is not WorkflowPhase.ACTIVE,
                timeout=60,
            )
        return {task.action: task for task in mirror.rows(Task).values()}


async def submitted(running: Cluster, tmp_path: Path, *actions: dict[str, object]) -> list[Workflow]:
    return await running.swarm.queue.submit(flow(tmp_path, *actions))


async def test_tasks_run_after_what_they_depend_on_and_use_its_output(running: Cluster, tmp_path: Path) -> None:
    async with at_work(running, "a"):
        asked = await submitted(
            running, tmp_path, ask("last", prompt="Repeat: ${first.output.text}", depends_on=["other"]),
            ask("first"), ask("other", depends_on=["first"]),
        )  # fmt: skip
        tasks = await done(running, asked)
        assert {task.phase for task in tasks.values()} == {TaskPhase.DONE}
        first, other, last = tasks["first"], tasks["other"], tasks["last"]
        assert first.finished_at <= other.started_at and other.finished_at <= last.started_at  # type: ignore[operator]
        assert json.loads(first.output_json)["text"] and first.tokens_out == 3 and first.service
        workflow = await running.swarm.wait(workflow_done, asked[0], timeout=10)
        assert (workflow.done, workflow.tasks, workflow.phase) == (3, 3, WorkflowPhase.DONE)


async def test_a_failure_is_tried_again_then_passed_on(running: Cluster, tmp_path: Path) -> None:
    async with at_work(running, "a"):
        asked = await submitted(
            running, tmp_path, ask("slow", max_tokens=4000, timeout="0.3s", retries=2), ask("needs", depends_on=["slow"]),
            ask("far", prompt="${needs.output.text}"), ask("free"),
        )  # fmt: skip
        tasks = await done(running, asked)
        assert tasks["slow"].phase is TaskPhase.FAILED and tasks["slow"].attempt == 3
        assert "0.3 s" in tasks["slow"].detail
        for name in ("needs", "far"):
            assert tasks[name].phase in (TaskPhase.CANCELLED, TaskPhase.FAILED) and tasks[name].attempt == 0
            assert f"(task {tasks[name].depends_on[0]}) failed" in tasks[name].detail
        assert tasks["free"].phase is TaskPhase.DONE
        with pytest.raises(GswarmError, match="failed"):
            await running.swarm.wait(workflow_done, asked[0], timeout=10)


async def test_a_reference_to_what_is_not_in_an_output_fails_with_its_name(running: Cluster, tmp_path: Path) -> None:
    async with at_work(running, "a"):
        asked = await submitted(running, tmp_path, ask("one"), ask("two", prompt="${one.output.nothing}"))
        tasks = await done(running, asked)
        assert tasks["two"].phase is TaskPhase.FAILED and "nothing" in tasks["two"].detail


async def test_cancelling_stops_what_runs_on_its_node(running: Cluster, tmp_path: Path) -> None:
    async with at_work(running, "a"):
        (workflow,) = await submitted(
            running, tmp_path, ask("long", max_tokens=4000), ask("later", depends_on=["long"])
        )
        async with running.swarm.mirror((Task, Service), samples=False) as mirror:

            def long() -> Task | None:
                return next((t for t in mirror.rows(Task).values() if t.action == "long"), None)

            task = await seen(mirror, long, lambda t: t is not None and t.phase is TaskPhase.RUNNING)
            assert task is not None
            stopped = await running.swarm.queue.cancel(workflow=[workflow.id])
            assert [t.action for t in stopped] == ["long", "later"] and all(t.cancel for t in stopped)
            await seen(mirror, long, lambda t: t is not None and t.phase is TaskPhase.CANCELLED)
            # The device is free for the next at once: the generation of 4000 tokens has ended.
            tasks = await done(running, await running.swarm.queue.submit(flow(tmp_path, ask("next"), name="second")))
        assert tasks["next"].phase is TaskPhase.DONE and tasks["later"].phase is TaskPhase.CANCELLED
        assert (await running.swarm.get(Workflow, workflow.id)).phase is WorkflowPhase.CANCELLED
        with pytest.raises(NotFoundError, match="999"):
            await running.swarm.queue.cancel(["999"])


async def test_what_runs_when_an_agent_is_stopped_goes_on_with_the_next(running: Cluster, tmp_path: Path) -> None:
    async with running.swarm.mirror((Task,), samples=False) as mirror:
        phases = lambda: Counter(task.phase for task in mirror.rows(Task).values())  # noqa: E731
        async with at_work(running, "a"):
            asked = await submitted(running, tmp_path, *(ask(f"t{n}", max_tokens=400) for n in range(6)))
            await seen(mirror, phases, lambda found: found[TaskPhase.RUNNING] == 6)
        await seen(mirror, phases, lambda found: found == {TaskPhase.READY: 6})
        await running.swarm.queue.cancel(task=[task.id for task in mirror.rows(Task).values() if task.action != "t0"])
        async with running.agent("n1"):
            tasks = await done(running, asked)
    assert (tasks["t0"].phase, tasks["t0"].attempt, tasks["t0"].detail) == (TaskPhase.DONE, 2, "")


async def test_work_that_comes_before_its_service_is_adopted_waits_and_never_fails(
    running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host leases what it knows as ready to an agent that has just started, and has not adopted it yet."""
    from gswarm.queue import worker

    monkeypatch.setattr(worker, "SETTLE_S", 0.2)
    async with running.agent("n1") as agent:
        for placement in await running.swarm.model.download("a", source="simulated:1GiB"):
            await running.swarm.wait(download_done, placement, timeout=30)
        await done(running, await submitted(running, tmp_path, ask("first")))
        (name,) = agent.models.services._ready
        adopted_later = agent.models.services._ready.pop(name)
        asked = await running.swarm.queue.submit(flow(tmp_path, ask("early"), name="second"))
        async with running.swarm.mirror((Task,), samples=False) as mirror:

            def early() -> Task | None:
                return next((t for t in mirror.rows(Task).values() if t.action == "early"), None)

            await seen(mirror, early, lambda t: t is not None and t.attempt > 1)
        agent.models.services._ready[name] = adopted_later
        assert (await done(running, asked))["early"].phase is TaskPhase.DONE


async def test_a_cancel_tells_what_is_cancelled_by_it(running: Cluster, tmp_path: Path) -> None:
    (workflow,) = await submitted(
        running, tmp_path, ask("far", depends_on=["needs"]), ask("one"), ask("needs", depends_on=["one"]), ask("free")
    )
    tasks = {task.action: task for task in await running.swarm.list(Task)}
    phases = [(name, TaskPhase.CANCELLED) for name in ("far", "one", "needs")]
    tried = await running.swarm.using(dry_run=True).queue.cancel([tasks["one"].id])
    assert [(t.action, t.phase) for t in tried] == [(t.action, tasks[t.action].phase) for t in tried]
    assert {t.action for t in tried} == {"far", "one", "needs"}
    for _ in range(2):  # and a retry answers the same
        told = await running.swarm.using(request_id="once").queue.cancel([tasks["one"].id])
        assert [(t.action, t.phase) for t in told] == phases, "and what is not run because of it"
    assert (await running.swarm.get(Task, tasks["free"].id)).phase is TaskPhase.READY
    assert "3 tasks cancelled" in [e.message for e in await running.swarm.list(Event)]
    await running.swarm.queue.cancel(workflow=[workflow.id])
    assert (await running.swarm.get(Workflow, workflow.id)).cancelled == 4


async def test_failed_tasks_can_be_put_back_to_work(running: Cluster, tmp_path: Path) -> None:
    async with at_work(running, "a"):
        asked = await submitted(
            running, tmp_path, {"id": "get", "type": "download", "name": "late", "source": f"file://{tmp_path}/late"},
            {"id": "then", **{k: v for k, v in ask("then").items() if k != "id"}, "depends_on": ["get"]},
        )  # fmt: skip
        tasks = await done(running, asked)
        assert tasks["get"].phase is TaskPhase.FAILED and "late" in tasks["get"].detail
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "weights.bin").write_bytes(b"x" * 100)
        ids = [tasks["get"].id, tasks["then"].id]
        tried = await running.swarm.using(dry_run=True).queue.retry(ids[:1])
        assert [(t.id, t.phase) for t in tried] == [(ids[0], TaskPhase.FAILED), (ids[1], TaskPhase.FAILED)]
        again = await running.swarm.queue.retry([*ids, ids[0]])  # all that did not end well, one of them twice
        assert [t.id for t in again] == ids and not {t.phase for t in again} & {TaskPhase.FAILED, TaskPhase.CANCELLED}
        assert "2 tasks put back to work" in [e.message for e in await running.swarm.list(Event)]
        tasks = await done(running, asked)
        assert {task.phase for task in tasks.values()} == {TaskPhase.DONE}
        with pytest.raises(GswarmError):
            await running.swarm.queue.retry([tasks["get"].id])


async def test_all_of_a_workflow_that_did_not_end_well_can_be_put_back_to_work(
    running: Cluster, tmp_path: Path
) -> None:
    (workflow,) = await submitted(running, tmp_path, ask("one"), ask("then", depends_on=["one"]), ask("other"))
    with pytest.raises(RefusedError, match="nothing to put back"):
        await running.swarm.queue.retry(workflow=[workflow.id])
    cancelled = await running.swarm.queue.cancel(workflow=[workflow.id])
    again = await running.swarm.queue.retry(workflow=[workflow.id])
    assert [t.id for t in again] == [t.id for t in cancelled]
    assert [t.phase for t in again] == [TaskPhase.READY, TaskPhase.WAITING, TaskPhase.READY]
    with pytest.raises(NotFoundError, match="w99"):
        await running.swarm.queue.retry(workflow=["w99"])
    with pytest.raises(InvalidError, match="nothing"):
        await running.swarm.queue.retry()


async def test_what_an_older_host_puts_back_is_read_in_one_request_by_the_ids_that_were_named(
    running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workflow,) = await submitted(running, tmp_path, *(ask(f"t{i}", "nomodel") for i in range(3)))
    cancelled = await running.swarm.queue.cancel(workflow=[workflow.id])
    call, watch, reads = running.swarm.call, running.swarm.watch, []

    async def older(request: Message, **options: Any) -> Any:
        response = await call(request, **options)
        response.ClearField("task_ids")
        return response

    def counted(request: WatchRequest, **options: Any) -> Any:
        reads.append(list(request.keys))
        return watch(request, **options)

    monkeypatch.setattr(running.swarm, "call", older)
    monkeypatch.setattr(running.swarm, "watch", counted)
    ids = [task.id for task in reversed(cancelled)]
    again = await running.swarm.queue.retry(ids)
    assert [t.id for t in again] == ids and {t.phase for t in again} == {TaskPhase.READY}
    assert reads == [ids]


async def test_tasks_are_grouped_by_model(running: Cluster, tmp_path: Path) -> None:
    """Twelve tasks of two models, turn by turn, on one device that holds one of them: one load each is enough."""
    async with at_work(running, "a", "b"):
        actions = [ask(f"t{i}", "ab"[i % 2]) for i in range(12)]
        for action in actions:
            action["max_tokens"] = 8
        tasks = await done(running, await submitted(running, tmp_path, *actions))
        assert {task.phase for task in tasks.values()} == {TaskPhase.DONE}
        order = [task.model for task in sorted(tasks.values(), key=lambda t: t.started_at)]  # type: ignore[arg-type,return-value]
        switches = sum(before != after for before, after in pairwise(order))
        assert switches == 1, order


async def test_a_model_too_large_for_one_gpu_is_loaded_on_several(running: Cluster, tmp_path: Path) -> None:
    """By the queue, and by a person who names no device: on those that are free."""
    async with at_work(running, "a", gpus=3):
        (placement,) = await running.swarm.model.download("large", source="simulated:100GiB")
        await running.swarm.wait(download_done, placement, timeout=30)
        tasks = await done(running, await submitted(running, tmp_path, ask("one", "large"), ask("two", "large")))
        assert {task.phase for task in tasks.values()} == {TaskPhase.DONE}
        assert {len(task.device_ids) for task in tasks.values()} == {2}
        with pytest.raises(RefusedError, match="no device can take large now"):
            await running.swarm.model.serve("large")  # the third GPU alone is too small
        await running.swarm.model.stop(tasks["one"].service)
        async with running.swarm.mirror((Service,), samples=False) as mirror:
            await seen(
                mirror, lambda: [s.phase for s in mirror.rows(Service).values()], lambda p: p == [ServicePhase.STOPPED]
            )
        small = await running.swarm.model.serve("a", device=["gpu1"])
        large = await running.swarm.model.serve("large")
        assert len(large.device_ids) == 2 and not set(large.device_ids) & set(small.device_ids)


async def test_a_late_word_that_a_service_ended_does_not_end_the_next_of_its_name(running: Cluster) -> None:
    """An agent says more than once that it ended one, and its name is free from the first time on."""
    told = agent_pb2.ServiceReport(name="a", observed_generation=2, phase=models_pb2.SERVICE_PHASE_STOPPED)
    asked = models_pb2.Service(
        name="a", node="n1", device_ids=["n1/0"], backend="simulated", generation=3, observed_generation=2
    )
    handler = running.context.nodes.reports._handlers["service"]
    phases = []
    for stop in (False, True):
        asked.stop = stop
        await running.context.store.apply(
            lambda tx: tx.put(models_pb2.Service.FromString(asked.SerializeToString())), actor="t"
        )
        await running.context.store.apply(lambda tx: handler(tx, "n1", agent_pb2.Report(service=told)), actor="t")
        (found,) = await running.swarm.list(Service)
        phases.append(found.phase)
    assert phases == [ServicePhase.UNKNOWN, ServicePhase.STOPPED]


async def test_urgent_tasks_go_first(running: Cluster, tmp_path: Path) -> None:
    async with at_work(running, "a"):
        words = ["low", "normal", "high", "critical"]
        gate: dict[str, object] = {"id": "gate", "type": "download", "name": "gate", "source": "simulated:1GiB"}
        actions = [
            ask(f"{word}{i}", priority=word, depends_on=["gate"], max_tokens=40) for word in words for i in range(6)
        ]
        tasks = await done(running, await submitted(running, tmp_path, gate, *actions))
        started: dict[str, list[float]] = {word: [] for word in words}
        for task in tasks.values():
            if task.action != "gate":
                assert task.phase is TaskPhase.DONE and task.started_at is not None
                started[task.priority.value].append(task.started_at.timestamp())
        for before, after in pairwise(reversed(words)):
            assert sum(started[before]) <= sum(started[after]), (before, after)


async def test_every_type_of_task(running: Cluster, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"w" * 5000)
    from gswarm.data import access

    async with at_work(running, "a", gpus=2):
        chunk = await access.put_value(running.swarm, b"moving")
        async with running.agent("n2", simulate="1xH100"):
            actions: list[dict[str, object]] = [
                {"id": "get", "type": "download", "name": "m", "source": f"file://{tmp_path}/weights", "node": "n1"},
                {
                    "id": "up",
                    "type": "serve",
                    "model": "a",
                    "device": "n1:gpu1",
                    "service": "mine",
                    "depends_on": ["get"],
                },
                ask("say", depends_on=["up"]),
                {"id": "down", "type": "stop", "service": "mine", "depends_on": ["say"]},
                {"id": "move", "type": "data_transfer", "chunk": chunk.id, "node": "n2"},
            ]
            tasks = await done(running, await submitted(running, tmp_path, *actions))
            assert {t.action: (t.phase, t.detail) for t in tasks.values() if t.phase is not TaskPhase.DONE} == {}
            assert {place.node for place in (await running.swarm.get(Chunk, chunk.id)).locations} == {"n1", "n2"}
            assert "m@v1@n1" in {p.id for p in await running.swarm.list(Placement)} or any(
                p.model == "m" and p.node == "n1" for p in await running.swarm.list(Placement)
            )
            mine = [s for s in await running.swarm.list(Service) if s.name == "mine"]
            assert not mine or mine[0].phase is ServicePhase.STOPPED


async def test_what_was_submitted_and_done_outlives_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    async with cluster(tmp_path / "state") as first:
        async with at_work(first, "a"):
            before = await done(first, await submitted(first, tmp_path, ask("one")))
        (waiting,) = await first.swarm.queue.submit(flow(tmp_path, ask("two"), name="second"))
    async with cluster(tmp_path / "state") as second:
        assert (await second.swarm.get(Task, before["one"].id)).output_json == before["one"].output_json
        async with second.agent("n1", simulate="1xH100"):
            tasks = await done(second, [waiting])
        assert tasks["two"].phase is TaskPhase.DONE


async def test_a_submission_repeated_with_its_id_is_one_workflow(running: Cluster, tmp_path: Path) -> None:
    files = flow(tmp_path, ask("one"), ask("two"))
    first = await running.swarm.using(request_id="r1").queue.submit(files)
    again = await running.swarm.using(request_id="r1").queue.submit(files)
    assert [w.id for w in first] == [w.id for w in again]
    assert len(await running.swarm.list(Task)) == 2


async def test_a_file_with_a_mistake_submits_nothing(running: Cluster, tmp_path: Path) -> None:
    good, bad = flow(tmp_path, ask("one"), name="good"), flow(tmp_path, ask("one", depends_on=["two"]), name="bad")
    with pytest.raises(InvalidError, match="two"):
        await running.swarm.queue.submit([*good, *bad])
    assert not await running.swarm.list(Workflow)


async def test_a_full_queue_refuses_whole_and_has_room_again(running: Cluster, tmp_path: Path) -> None:
    config = running.context.config
    running.context.config = replace(config, host=replace(config.host, queue_limit=3))
    (first,) = await submitted(running, tmp_path, ask("one"), ask("two"))
    with pytest.raises(ExhaustedError, match="2 tasks are unfinished, 3 are allowed"):
        await submitted(running, tmp_path, ask("three"), ask("four"))
    assert len(await running.swarm.list(Task)) == 2
    many = [running.swarm.queue.submit(flow(tmp_path, ask("x"), name=f"f{i}")) for i in range(5)]
    answers = await asyncio.gather(*many, return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1, "also when they come at once"
    await running.swarm.queue.cancel(workflow=[first.id])
    await submitted(running, tmp_path, ask("three"), ask("four"))


async def test_why_a_task_waits(running: Cluster, tmp_path: Path) -> None:
    """Asked in turn while the reason changes."""
    (workflow,) = await submitted(running, tmp_path, ask("one", "nomodel"), ask("two", "a", depends_on=["one"]))
    tasks = {task.action: task for task in await running.swarm.list(Task)}

    async def reason(action: str) -> str:
        return (await running.swarm.queue.explain(tasks[action].id)).reason

    assert "no model nomodel" in await reason("one")
    assert await reason("two") == f"waiting for task {tasks['one'].id}"
    await running.swarm.queue.cancel(workflow=[workflow.id])
    (again,) = await running.swarm.queue.submit(flow(tmp_path, ask("three", "a"), name="second"))
    tasks |= {task.action: task for task in await running.swarm.list(Task)}
    async with at_work(running, "a"):
        tasks |= await done(running, [again])
        assert (await reason("three")).startswith("done, on ")
        assert await reason("one") == tasks["one"].detail != ""
    with pytest.raises(NotFoundError, match="4711"):
        await running.swarm.queue.explain("4711")


async def test_the_plan_counts_what_waits_for_others_apart_from_what_no_device_takes(
    running: Cluster, tmp_path: Path
) -> None:
    await submitted(running, tmp_path, ask("one", "nomodel"), ask("two", "a", depends_on=["one"]))
    async with running.swarm.mirror((Plan,), samples=False) as mirror:
        plans = lambda: [plan.counts for plan in mirror.rows(Plan).values()]  # noqa: E731
        await seen(mirror, plans, lambda found: found == [["1 waiting", "1 blocked"]])
    assert (await running.swarm.queue.plan()).lines()[0].startswith("1 waiting, 1 blocked; ")


async def test_a_plan_that_could_not_be_shown_is_shown_at_the_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise ExhaustedError("no room")

    lanes = {"g0": queue_pb2.Lane(device_id="g0", alias="n1:gpu0")}
    async with Store(tmp_path) as store:
        shown = ShownPlan(store, strategy.create("online", wait_bound_s=60), History())
        with monkeypatch.context() as full, pytest.raises(ExhaustedError):
            full.setattr(store, "apply", refused)
            await shown._show(queue_pb2.Plan(ready=1), lanes)
        await shown._show(queue_pb2.Plan(ready=1), lanes)
        assert list(store.state.list(queue_pb2.Lane)) == list(lanes.values())


@pytest.mark.parametrize(("name", "why"), [("fifo", "fit for files only"), ("onlin", "none of that name")])
async def test_a_strategy_that_cannot_run_the_queue_is_refused_at_the_start(
    tmp_path: Path, name: str, why: str
) -> None:
    config = replace(CONFIG, queue=QueueConfig(strategy=name))
    with pytest.raises(InvalidError, match=why) as refused:
        async with cluster(tmp_path / "state", config=config):
            pass
    assert refused.value.field == "queue.strategy" and refused.value.next == "set queue.strategy to online"


async def test_a_strategy_whose_package_is_broken_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("theirs", "no_such_package:Best", "gswarm.strategies")
    monkeypatch.setattr("gswarm.scheduler.strategies.entry_points", lambda group: [point])
    config = replace(CONFIG, queue=QueueConfig(strategy="theirs"))
    with pytest.raises(InvalidError, match="cannot be loaded from no_such_package:Best") as refused:
        async with cluster(tmp_path / "state", config=config):
            pass
    assert refused.value.field == "queue.strategy"


async def test_an_output_too_long_for_the_queue_is_a_chunk(
    running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gswarm.data import access
    from gswarm.queue import worker

    monkeypatch.setattr(worker, "OUTPUT_LIMIT", 100)
    async with at_work(running, "a"):
        tasks = await done(running, await submitted(running, tmp_path, ask("long", max_tokens=60)))
        assert tasks["long"].phase is TaskPhase.DONE, tasks["long"].detail
        output = json.loads(tasks["long"].output_json)
        assert output["bytes"] > 100
        with await access.map_chunk(running.swarm, output["chunk"]) as mapped:
            whole = mapped.value()
            assert isinstance(whole, dict) and len(whole["text"]) > 100
        chunk = await running.swarm.get(Chunk, output["chunk"])
        assert [holder.name for holder in chunk.holders] == [f"task-{tasks['long'].id}"]
        with pytest.raises(RefusedError):
            await running.swarm.data.delete(chunk.id)


async def test_who_did_what_is_in_the_event_log(running: Cluster, tmp_path: Path) -> None:
    (workflow,) = await submitted(running, tmp_path, ask("one"))
    await running.swarm.queue.cancel(workflow=[workflow.id])
    events = [e for e in await running.swarm.list(Event) if e.subject == workflow.id]
    assert events and {e.actor for e in events} == {"local"}
