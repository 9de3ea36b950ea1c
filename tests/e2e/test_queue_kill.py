"""The queue while its host and its agent are killed: what was acknowledged is there once, and done once."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gswarm.queue.types import Task, TaskPhase, Workflow, WorkflowPhase
from gswarm.queue.workflow import parse
from gswarm.v1 import queue_pb2
from tests.support.killing import READY, Client, Running, eventually, ready, started

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
CLIENTS = 6
TOKENS = 80
BACKLOG = 40
"""Unfinished workflows at which the clients hold back: the load lasts as long as the killing, and stays watched."""
PROGRESS = 15
"""Tasks that end between two kills: each finds the queue at work."""
KILLS = (("host",), ("agent",), ("host",), ("agent",), ("host", "agent"), ("host",))


def two_steps(name: str, model: str) -> list[queue_pb2.WorkflowSpec]:
    """A task, and one that needs its output."""
    actions = [
        {"id": "first", "type": "inference", "model": model, "prompt": f"Say {name}.", "max_tokens": TOKENS},
        {"id": "then", "type": "inference", "model": model, "prompt": "${first.output.text}", "max_tokens": 3},
    ]
    return parse(json.dumps({"name": name, "actions": actions}), name, is_json=True)


@dataclass
class Load:
    """Clients that submit small lists of workflows, each with a request id, until told to stop."""

    running: Running
    over: asyncio.Event = field(default_factory=asyncio.Event)
    asked: dict[str, queue_pb2.SubmitRequest] = field(default_factory=dict)
    answers: dict[str, queue_pb2.SubmitResponse] = field(default_factory=dict)

    async def submit(self, who: int) -> None:
        async with self.running.client() as client:
            number = 0
            while not self.over.is_set():
                number += 1
                id_ = f"c{who}-{number}"
                specs = [s for i in range(1 + number % 3) for s in two_steps(f"{id_}-{i}", "ab"[(number + i) % 2])]
                self.asked[id_] = queue_pb2.SubmitRequest(workflows=specs)
                self.answers[id_] = await client.insist(self.asked[id_], id_)
                await eventually(lambda: active(client), lambda count: count < BACKLOG)

    def names(self) -> list[str]:
        return [spec.name for request in self.asked.values() for spec in request.workflows]


async def active(client: Client) -> int:
    return len(await client.swarm.list(Workflow, filters=("phase=active",), limit=0))


async def done(client: Client) -> int:
    return sum(w.done for w in await client.swarm.list(Workflow, limit=0))


async def under_way(client: Client) -> int:
    return len(await client.swarm.list(Task, filters=("phase=running",), limit=0))


async def progress(client: Client) -> None:
    """Wait until some more tasks have ended, and others are on their way."""
    before = await done(client)
    await eventually(lambda: done(client), lambda count: count >= before + PROGRESS)
    await eventually(lambda: under_way(client), lambda count: count >= 4)


def output(task: Task) -> Any:
    return json.loads(task.output_json or "{}")


async def test_kills_under_load_neither_lose_nor_double_a_task(tmp_path: Path) -> None:
    with started(tmp_path) as running:
        (host,) = running._processes
        processes: dict[str, subprocess.Popen[bytes]] = {"host": host, "agent": running.agent()}
        start = {"host": running.host, "agent": running.agent}
        async with running.client() as client:
            await ready(client)
            await client.serve("a")  # a person's service; where b is loaded is the planner's affair
            await client.download("b")

            load = Load(running)
            clients = [asyncio.create_task(load.submit(who)) for who in range(CLIENTS)]
            for victims in KILLS:
                await progress(client)
                for victim in victims:
                    running.kill(processes[victim])
                for victim in victims:
                    processes[victim] = start[victim]()
            load.over.set()
            await asyncio.gather(*clients)
            await eventually(lambda: active(client), lambda count: count == 0, timeout=30)

            # Every workflow that was asked for was acknowledged, and is there once, under the id that was told.
            workflows = await client.swarm.list(Workflow, limit=0)
            told = {w.id: w.name for answer in load.answers.values() for w in answer.workflows}
            assert Counter(w.name for w in workflows) == Counter(load.names())
            assert {w.id: w.name for w in workflows} == told
            assert len(workflows) > len(KILLS) * PROGRESS / 2, "there was load"

            # Every task is done, with one result of its own; the counts would tell of one that ended twice.
            tasks = await client.swarm.list(Task, limit=0)
            assert not [(t.id, t.attempt, t.phase, t.detail) for t in tasks if t.phase is not TaskPhase.DONE]
            assert Counter((w.phase, w.tasks, w.done, w.failed, w.cancelled) for w in workflows) == {
                (WorkflowPhase.DONE, 2, 2, 0, 0): len(workflows)
            }
            assert Counter((t.workflow_id, t.action) for t in tasks) == Counter(
                (w.id, action) for w in workflows for action in ("first", "then")
            )
            assert all(output(t)["text"] and output(t)["finish_reason"] for t in tasks)
            assert {(t.action, t.tokens_out) for t in tasks} == {("first", TOKENS), ("then", 3)}
            assert sum(t.attempt > 1 for t in tasks), "what ran when the agent was killed was run again"
            ended = Counter(event.subject for event in await client.events("workflow.ended"))
            assert ended == Counter(told.keys())

            # A client that never heard the answer may ask again, also now: it gets the same one.
            for id_, answer in list(load.answers.items())[::CLIENTS]:
                assert await client.insist(load.asked[id_], id_) == answer
            assert len(await client.swarm.list(Workflow, limit=0)) == len(workflows)

            async def serving_and_there() -> tuple[list[int], list[int]]:
                services = [o.service for o in await client.look() if o.HasField("service")]
                return sorted(s.pid for s in services if s.phase == READY), sorted(p.pid for p in running.backends())

            # Each serves, none is left: one that the planner began to load for the last tasks may take a moment.
            await eventually(serving_and_there, lambda found: found[0] == found[1])

        for name in ("agent", "host"):
            processes[name].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(processes[name].wait, 40) == 0
        assert not running.installed.processes(), "nothing outlives its end"
        assert "Traceback" not in running.log()
