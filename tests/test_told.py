"""Whatever happens to tasks, the strategy knows of them what the state says."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gswarm.config import Config
from gswarm.host.store import Store
from gswarm.host.transaction import Transaction
from gswarm.queue import transitions
from gswarm.queue.dispatcher import Dispatcher
from gswarm.queue.plan import frozen
from gswarm.queue.transitions import BACKOFF, DONE, FAILED, READY, RUNNING, WAITING
from gswarm.queue.workflow import MAX_ACTIONS, build
from gswarm.scheduler.strategies.online import Online
from gswarm.scheduler.strategies.pieces import State
from gswarm.scheduler.strategy import Arrived, Device, DeviceIs, Event, Job, Model, ModelIs, Server, ServerIs
from gswarm.v1 import queue_pb2
from gswarm.v1.queue_pb2 import Task

TOLD = {WAITING: State.BLOCKED, READY: State.READY, RUNNING: State.RUNNING}
words = st.sampled_from(
    ["submit", "lease", "lease", "done", "done", "done", "fail", "lose", "again", "cancel", "retry", "rank"]
)


@st.composite
def flows(draw: st.DrawFn) -> queue_pb2.WorkflowSpec:
    """Up to five actions, each of which may need any before it; one may be the host's own."""
    actions: list[dict[str, object]] = []
    for number in range(draw(st.integers(1, 5))):
        needs = [f"a{n}" for n in range(number) if draw(st.booleans())]
        action: dict[str, object] = {"id": f"a{number}", "depends_on": needs, "retries": draw(st.integers(0, 1))}
        if draw(st.integers(0, 3)):
            action |= {"type": "inference", "model": draw(st.sampled_from("mn")), "prompt": "hi"}
        else:
            action |= {"type": "stop", "service": "s"}
        actions.append(action)
    return build({"name": "f", "actions": actions})


def happens(tx: Transaction, word: str, n: int) -> None:
    """One thing to one task that it can happen to."""
    at = {
        "lease": (READY,), "done": (RUNNING,), "fail": (RUNNING,), "lose": (RUNNING,), "again": (BACKOFF,),
        "cancel": (WAITING, READY, RUNNING, BACKOFF), "retry": (FAILED, queue_pb2.TASK_PHASE_CANCELLED),
        "rank": (WAITING, READY),
    }[word]  # fmt: skip
    fitting = [task.id for task in tx.list(Task) if task.phase in at]
    if not fitting:
        return
    task = transitions.edit(tx, fitting[n % len(fitting)])
    match word:
        case "lease":
            transitions.lease(tx, task, node="n1", service="", device_ids=())
        case "done":
            transitions.finish(tx, task, DONE, "")
        case "fail":
            transitions.attempt_failed(tx, task, "it broke")
        case "lose":
            transitions.ready_again(tx, task, "the node went")
        case "again":
            transitions.make_ready(tx, task)
        case "cancel":
            transitions.cancel(tx, [task.id])
        case "retry":
            transitions.retry(tx, [task.id])
        case "rank":
            task.priority = queue_pb2.PRIORITY_CRITICAL
            tx.put(task)


async def lives(steps: list[tuple[str, int, queue_pb2.WorkflowSpec]], directory: Path) -> None:
    async with Store(directory) as store:
        host = SimpleNamespace(config=Config(), store=store, nodes=SimpleNamespace(connected=lambda _: False))
        live = Dispatcher(cast(Any, host))
        store.subscribe(live._on_batch)
        for word, n, flow in steps:
            if word == "submit":
                request = queue_pb2.SubmitRequest(workflows=[flow])
                await store.apply(transitions.submit(request, unfinished=0, limit=1000), actor="t")
            else:
                await store.apply(lambda tx, word=word, n=n: happens(tx, word, n), actor="t")  # type: ignore[misc]
            live.strategy.handle(live.now(), live.news())
            restarted = Dispatcher(cast(Any, host))
            restarted.take_stock()
            restarted.strategy.handle(restarted.now(), restarted.news())
            asked = [task for task in store.state.list(Task) if task.type == queue_pb2.TASK_TYPE_INFERENCE]
            for dispatcher in (live, restarted):
                strategy = dispatcher.strategy
                assert isinstance(strategy, Online)
                expected = {task.id: TOLD[task.phase] for task in asked if task.phase in TOLD}
                assert {task.id: task.state for task in strategy._tasks.values()} == expected, word
                ranks = {task.id: int(task.priority) for task in asked if task.phase in (WAITING, READY)}
                assert {key: int(strategy._tasks[key].rank) for key in ranks} == ranks, word
                counted = {name: line.blocked.count for name, line in strategy._blocked.items()}
                waiting = [task.model for task in asked if task.phase == WAITING]
                assert counted == {name: waiting.count(name) for name in waiting}, word


@given(
    st.lists(flows(), min_size=2, max_size=4),
    st.lists(st.tuples(words, st.integers(0, 99), flows()), min_size=12, max_size=30),
)
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_the_strategy_knows_of_tasks_what_the_state_says(
    first: list[queue_pb2.WorkflowSpec], steps: list[tuple[str, int, queue_pb2.WorkflowSpec]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(lives([("submit", 0, flow) for flow in first] + steps, Path(directory)))


def test_a_chain_as_long_as_a_workflow_may_be_is_planned() -> None:
    """The plan runs a copy of the strategy ahead, and copying must not go down the chain."""
    strategy = Online(load_ahead=False)
    told: list[Event] = [
        DeviceIs(Device("d", 80 << 30)), ModelIs(Model("m", 1 << 30, ("d",), load_s=10.0, run_s=1.0)),
        *(Arrived(Job(str(n), "m", needs=frozenset([str(n - 1)] if n else []))) for n in range(MAX_ACTIONS)),
    ]  # fmt: skip
    strategy.handle(0.0, told)
    copied = frozen(strategy)()
    assert copied is not strategy
    server = Server("s", "m", ("d",), slots=1, ours=True, ready=True)
    assert copied.handle(0.0, [ServerIs(server)]) == strategy.handle(0.0, [ServerIs(server)])
