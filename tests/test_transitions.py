"""What may happen to tasks and workflows, as pure operations on a state in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.host.state import Entry
from gswarm.host.transaction import Committed, Edits, Transaction
from gswarm.queue import transitions
from gswarm.queue.transitions import CANCELLED, DONE, FAILED, FINAL, READY, UNWELL, WAITING
from gswarm.v1 import common_pb2, queue_pb2
from gswarm.v1.queue_pb2 import Task, Workflow


class State:
    """Committed objects, without a file."""

    def __init__(self) -> None:
        self.committed = Committed(None, {})  # type: ignore[arg-type]
        self.revision = 0

    def apply(self, operation: Any, *args: Any) -> Any:
        """Run one operation and take what it changes."""
        self.revision += 1
        edits = Edits()
        tx = Transaction(
            self.committed, Edits(), edits, revision=self.revision, now=datetime.now(UTC), actor="me", cause=""
        )
        found = operation(tx, *args)
        for (kind, key), message in edits.objects.items():
            edits.entries[kind, key] = Entry(message, self.revision) if message is not None else None
        self.committed.absorb(edits)
        return found

    def submit(self, needs: list[list[int]]) -> list[str]:
        """One workflow of tasks t0, t1 and so on, each with the numbers of those it depends on: their ids."""
        spec = queue_pb2.WorkflowSpec(name="w")
        for number, before in enumerate(needs):
            spec.actions.add(id=f"t{number}", depends_on=[f"t{n}" for n in before])
        request = queue_pb2.SubmitRequest(workflows=[spec])
        response = self.apply(transitions.submit(request, unfinished=0, limit=1000))
        first = response.workflows[0].first_task
        return [str(first + n) for n in range(len(needs))]

    def tasks(self) -> dict[str, Task]:
        """All there are, by id."""
        return {task.id: task for task in self.apply(lambda tx: list(tx.list(Task)))}

    def end(self, task_id: str, phase: queue_pb2.TaskPhase.ValueType) -> int:
        """A task has its end."""
        return int(self.apply(lambda tx: transitions.finish(tx, transitions.edit(tx, task_id), phase, "so it went")))

    def retry(self, *task_ids: str) -> list[str]:
        """Put back to work."""
        return list(self.apply(transitions.retry, task_ids))

    def phases(self, ids: list[str]) -> list[queue_pb2.TaskPhase.ValueType]:
        """Of these, in order."""
        tasks = self.tasks()
        return [tasks[name].phase for name in ids]


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """What each task depends on, in any order of tasks."""
    count = draw(st.integers(1, 8))
    order = draw(st.permutations(range(count)))
    place = {number: at for at, number in enumerate(order)}
    return [
        [other for other in range(count) if place[other] < place[number] and draw(st.booleans())]
        for number in range(count)
    ]


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_no_task_waits_for_one_that_will_not_run(needs: list[list[int]], rng: Random) -> None:
    state = State()
    ids = state.submit(needs)
    for _ in range(12):
        tasks = state.tasks()
        ready = [name for name in ids if tasks[name].phase == READY]
        unwell = [name for name in ids if tasks[name].phase in UNWELL]
        if ready and (not unwell or rng.random() < 0.7):
            state.end(rng.choice(ready), rng.choice([DONE, DONE, FAILED, CANCELLED]))
        elif unwell:
            named = rng.choice(unwell)
            assert named in state.retry(named)
        tasks = state.tasks()
        for task in tasks.values():
            before = {tasks[need].phase for need in task.depends_on}
            assert task.phase != WAITING or not before & UNWELL, f"{task.id} waits for ever"
            assert task.phase != WAITING or before - {DONE}, f"{task.id} waits for nothing"
            assert task.phase != READY or before <= {DONE}
        (workflow,) = state.apply(lambda tx: list(tx.list(Workflow)))
        counts = [sum(task.phase == phase for task in tasks.values()) for phase in (DONE, FAILED, CANCELLED)]
        assert [workflow.done, workflow.failed, workflow.cancelled] == counts
        ended = all(task.phase in FINAL for task in tasks.values())
        assert (workflow.phase != queue_pb2.WORKFLOW_PHASE_ACTIVE) == ended


def test_a_task_goes_back_to_work_with_what_it_needs() -> None:
    state = State()
    a, b, _, d = ids = state.submit([[], [], [0, 1], [2]])
    state.end(a, FAILED)
    state.end(b, FAILED)
    assert state.phases(ids) == [FAILED] * 4
    assert state.retry(d) == ids, "what it needs failed: it would wait for ever"
    assert state.phases(ids) == [READY, READY, WAITING, WAITING]


def test_what_needs_another_one_that_failed_stays_as_it_is() -> None:
    state = State()
    a, b, c = ids = state.submit([[], [], [0, 1]])
    state.end(a, FAILED)
    state.end(b, FAILED)
    assert state.retry(a) == [a]
    state.end(a, DONE)
    assert state.phases(ids) == [DONE, FAILED, FAILED]
    assert state.retry(b) == [b, c]


def test_a_workflow_that_failed_says_so_as_an_error() -> None:
    for phase, severity in ((DONE, common_pb2.SEVERITY_INFO), (FAILED, common_pb2.SEVERITY_ERROR)):
        state = State()
        (only,) = state.submit([[]])
        state.end(only, phase)
        events = state.apply(lambda tx: list(tx.list(common_pb2.Event)))
        assert [event.severity for event in events if event.type == "workflow.ended"] == [severity]


def test_tasks_of_an_older_host_are_told_what_depends_on_them() -> None:
    state = State()
    ids = state.submit([[1], [], [1, 0]])

    def forget(tx: Transaction) -> None:
        for name in ids:
            task = transitions.edit(tx, name)
            task.ClearField("needed_by")
            tx.put(task)

    state.apply(forget)
    state.apply(transitions.link)
    tasks = state.tasks()
    assert [list(tasks[name].needed_by) for name in ids] == [[ids[2]], [ids[0], ids[2]], []]
    state.end(ids[1], DONE)
    assert state.phases(ids) == [READY, DONE, WAITING]


@pytest.mark.parametrize(("phase", "then"), [(DONE, READY), (FAILED, FAILED)])
def test_what_ended_before_the_tasks_of_an_older_host_were_told_is_passed_on(
    phase: queue_pb2.TaskPhase.ValueType, then: queue_pb2.TaskPhase.ValueType
) -> None:
    state = State()
    ids = state.submit([[], [0], []])

    def forget(tx: Transaction) -> None:
        task = transitions.edit(tx, ids[0])
        task.ClearField("needed_by")
        tx.put(task)

    state.apply(forget)
    state.end(ids[0], phase)
    assert state.phases(ids) == [phase, WAITING, READY]
    for _ in range(2):
        state.apply(transitions.link)
        assert state.phases(ids) == [phase, then, READY]
    state.end(ids[2], DONE)
    (workflow,) = state.apply(lambda tx: list(tx.list(Workflow)))
    assert (workflow.phase == queue_pb2.WORKFLOW_PHASE_FAILED) == (phase == FAILED)
    assert workflow.done + workflow.failed == (3 if phase == FAILED else 2)


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_an_end_looks_at_no_more_tasks_than_depend_on_it(shape: str) -> None:
    """What an end costs must not grow with the workflow: ten thousand tasks are allowed."""
    looks = []
    for count in (10, 100):
        state = State()
        ids = state.submit([[] if n == 0 else [n - 1] if shape == "chain" else [] for n in range(count)])
        seen = 0

        def end(tx: Transaction) -> None:
            task = transitions.edit(tx, ids[3])  # noqa: B023
            get = tx.get

            def counted(*args: Any) -> Any:
                nonlocal seen
                seen += 1
                return get(*args)

            tx.get = counted  # type: ignore[method-assign,assignment]
            transitions.finish(tx, task, DONE, "")

        state.apply(end)
        looks.append(seen)
    assert looks[0] == looks[1]
