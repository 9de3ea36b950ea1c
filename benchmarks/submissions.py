"""Durable submissions a second: workflows through the host's store, beside huey on SQLite with fsync on.

Both answer a submission only once it is on disk, in the same file system. The store commits what waits in one group, so
many callers share one fsync; huey writes each by itself. One task a workflow, payloads of the same size; both in turns.
Beside it, with no ratio to hold: workflows through a whole host's RPC in lists of 100, host and caller in one process.
Prints one JSON line; the ratio is gswarm to huey, round by round.

    python benchmarks/submissions.py [--count 3000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from huey import SqliteHuey

from gswarm import net
from gswarm.config import Config, HostConfig
from gswarm.host.server import collect_seldom, host
from gswarm.host.store import Store
from gswarm.queue import transitions
from gswarm.queue.workflow import build
from gswarm.v1 import queue_pb2, queue_pb2_grpc

GOAL = 5.0
LIST = 100
HUEY_COUNT = 300
"""So many are enough to time huey, each with an fsync of its own."""
PROMPT = "What is the capital of France? " * 4


async def ours(directory: Path, count: int, callers: int) -> float:
    """Submissions a second, `callers` at a time."""
    spec = build({"name": "one", "actions": [{"id": "a", "type": "inference", "model": "m", "prompt": PROMPT}]})
    request = queue_pb2.SubmitRequest(workflows=[spec])
    async with Store(directory) as store:

        async def caller() -> None:
            for _ in range(count // callers):
                await store.apply(
                    transitions.submit(request, unfinished=0, limit=1_000_000), actor="bench", method="Queue.Submit"
                )

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return count / (time.perf_counter() - began)


async def rpc(directory: Path, count: int) -> float:
    """Workflows a second through `Queue.Submit`, 100 in a list, 4 calls at a time."""
    spec = build({"name": "one", "actions": [{"id": "a", "type": "inference", "model": "m", "prompt": PROMPT}]})
    request = queue_pb2.SubmitRequest(workflows=[spec] * LIST)
    async with (
        host(Config(host=HostConfig(port=0, http_port=0, model_port=0)), directory) as context,
        grpc.aio.insecure_channel(f"127.0.0.1:{context.file.port}") as channel,
    ):
        stub = queue_pb2_grpc.QueueStub(channel)

        async def caller() -> None:
            for _ in range(count // LIST // 4):
                await stub.Submit(request, metadata=net.bearer(context.token))

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(4)))
        return count / (time.perf_counter() - began)


def huey(directory: Path) -> float:
    """Enqueued tasks a second."""
    queue: Any = SqliteHuey("bench", filename=str(directory / "huey.db"), fsync=True)

    @queue.task()  # type: ignore[untyped-decorator]
    def infer(prompt: str) -> str:
        return prompt

    began = time.perf_counter()
    for _ in range(HUEY_COUNT):
        infer(PROMPT)
    return HUEY_COUNT / (time.perf_counter() - began)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    collect_seldom()
    results: dict[str, list[float]] = {
        "gswarm_100_callers": [],
        "gswarm_1_caller": [],
        "huey": [],
        "rpc_lists_of_100": [],
    }
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            results["gswarm_100_callers"].append(asyncio.run(ours(root / "many", options.count, 100)))
            results["gswarm_1_caller"].append(asyncio.run(ours(root / "one", min(options.count, HUEY_COUNT), 1)))
            results["huey"].append(huey(root))
            results["rpc_lists_of_100"].append(asyncio.run(rpc(root / "host", max(800, options.count))))
    medians = {name: round(statistics.median(values)) for name, values in results.items()}
    pairs = zip(results["gswarm_100_callers"], results["huey"], strict=True)
    ratio = round(statistics.median(many / one for many, one in pairs), 1)
    print(json.dumps({"benchmark": "submissions", "goal": GOAL, "ratio": ratio, "per_s": medians}))


if __name__ == "__main__":
    main()
