"""What many watchers cost the host: its CPU a second with 100 consoles that follow everything, beside one.

Nodes with 8 devices each send a tick a second in the host's phase slots; each watcher has its own connection and asks for all
state and all samples, as a console does. Host, agents and watchers are processes of their own; one watcher and many are
measured in turns, on the same host. Prints one JSON line.

    python benchmarks/fanout.py [--nodes 8] [--watchers 100] [--seconds 6] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from typing import Any

import grpc.aio
from ingest import Node, Server, start

from gswarm import net
from gswarm.v1 import cluster_pb2

METHOD = "/gswarm.v1.Cluster/Watch"
DEVICES = 8
SETTLE_S = 2.0


async def watch(port: int, token: str, count: int) -> None:
    """Follow with so many watchers until standard input ends; says how many ticks each has heard."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    request = cluster_pb2.WatchRequest()
    request.samples.SetInParent()
    heard = [0] * count

    async def follow(number: int) -> None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)
        method: Any = channel.unary_stream(METHOD)
        call = method(request.SerializeToString(), metadata=net.bearer(token))
        async for message in call:
            if number == 0:  # one is enough to see that all that was sent arrives; the rest only take it
                heard[number] += len(cluster_pb2.WatchResponse.FromString(message).ticks)
            else:
                heard[number] += len(message) > 100

    tasks = [asyncio.create_task(follow(number)) for number in range(count)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(json.dumps({"first": heard[0], "silent": sum(not told for told in heard)}), flush=True)
    for task in tasks:
        task.cancel()


async def turn(host: Server, count: int, seconds: float) -> tuple[float, int]:
    """Host CPU seconds a second with so many watchers, and the ticks that the first of them heard."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--watch", str(host.port), "--token", host.token, "--watchers", str(count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await asyncio.sleep(SETTLE_S + count / 50)
    cpu, begin = host.cpu(), time.monotonic()
    await asyncio.sleep(seconds)
    spent = (host.cpu() - cpu) / (time.monotonic() - begin)
    told, _ = await process.communicate(b"\n")
    found = json.loads(told)
    if found["silent"]:
        raise SystemExit(f"{found['silent']} of {count} watchers heard nothing")
    return spent, int(found["first"])


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """One and many, in turns."""
    with tempfile.TemporaryDirectory() as directory:
        async with start("--serve", "host", "--directory", directory) as host:
            nodes = [Node(host, number, DEVICES) for number in range(options.nodes)]
            for node in nodes:
                await node.attach()
            running = asyncio.gather(*(node.run(time.monotonic() + 0.5, 10_000) for node in nodes))
            one: list[float] = []
            many: list[float] = []
            for _ in range(options.rounds):
                for count, into in ((1, one), (options.watchers, many)):
                    spent, _ = await turn(host, count, options.seconds)
                    into.append(spent)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.gather(*(node.close() for node in nodes))
    ratios = [m / o for o, m in zip(one, many, strict=True)]
    return {
        "benchmark": "fanout",
        "nodes": options.nodes,
        "devices": DEVICES,
        "watchers": options.watchers,
        "one_cpu_percent": [round(100 * value, 2) for value in one],
        "many_cpu_percent": [round(100 * value, 2) for value in many],
        "ms_per_watcher_second": round(1000 * (statistics.median(many) - statistics.median(one)) / options.watchers, 3),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "many_to_one": round(sum(many) / sum(one), 2),
        "limit": 6.0,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--watch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--token", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        asyncio.run(watch(options.watch, options.token, options.watchers))
    else:
        print(json.dumps(asyncio.run(measure(options))))


if __name__ == "__main__":
    main()
