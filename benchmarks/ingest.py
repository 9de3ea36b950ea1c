"""What many nodes cost the host: its CPU beside a bare grpc.aio server that only counts the same bytes.

Every node has its own connection and sends one tick a second and a heartbeat every two, in the phase slot that the host
gave it. The servers run in processes of their own for the whole time and are driven in turns, so that the machine's
moods meet all. A third one is the bare server with the host's channel options and heap: beside it stands what our own code
takes, beside the bare one as gRPC comes what a node takes in all. Prints one JSON line.

    python benchmarks/ingest.py [--nodes 1000] [--devices 8] [--seconds 8] [--rounds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from gswarm import __version__, net
from gswarm.host.server import OPTIONS, collect_seldom, share_heap
from gswarm.profiler.metrics import METRICS, Cadence, Reading, Type
from gswarm.profiler.packing import Packer
from gswarm.profiler.simulated import parse
from gswarm.v1 import agent_pb2, cluster_pb2
from gswarm.v1.profiler_pb2 import MetricColumn, MetricSchema, SampleTick

METHOD = "/gswarm.v1.Agent/Attach"
SLOTS = 10
TICK_S, BEAT_TICKS = 1.0, 2
WARM_TICKS = 2
SAMPLES = 16


async def serve_host(directory: Path) -> None:
    """The real host, whole."""
    from gswarm.config import Config, HostConfig
    from gswarm.host.server import host

    async with host(Config(host=HostConfig(port=0, http_port=0, model_port=0)), directory) as context:
        print(f"{context.file.port} {context.token}", flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.readline():
            print(context.hub.held_bytes, context.hub.ticks, flush=True)


async def serve_bare(options: Sequence[tuple[str, str | int]] = ()) -> None:
    """A server that takes the same streams, counts their bytes and gives them slots; nothing is parsed."""
    counted, attached = 0, 0

    async def attach(_: object, context: Any) -> None:
        nonlocal counted, attached
        slot = attached % SLOTS * (100 // SLOTS)
        attached += 1
        counted += len(await context.read())
        welcome = agent_pb2.Welcome(phase_ms=slot, heartbeat_s=BEAT_TICKS * TICK_S)
        await context.write(agent_pb2.AttachResponse(welcome=welcome).SerializeToString())
        while (message := await context.read()) is not grpc.aio.EOF:
            counted += len(message)

    handler: Any = grpc.stream_stream_rpc_method_handler(attach)
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("gswarm.v1.Agent", {"Attach": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{port} -", flush=True)
    await server.wait_for_termination()


@dataclass(eq=False)
class Server:
    """One of the three, as a process."""

    process: asyncio.subprocess.Process
    port: int
    token: str
    cpu_s: list[float] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    """Bytes before the first node came, and while all are there, of each turn."""
    held: list[list[int]] = field(default_factory=list)
    """Of the real host: what `rings` says then."""

    def cpu(self) -> float:
        """CPU seconds so far, user and system."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    async def rings(self) -> list[int]:
        """Of the real host: bytes of all nodes' ticks as they are held, and how many have come."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"\n")
        return [int(number) for number in (await self.process.stdout.readline()).split()]


@contextlib.asynccontextmanager
async def start(*arguments: str) -> AsyncIterator[Server]:
    """Run this file as a server."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdin=-1, stdout=-1)
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().split()
        if not line:
            raise SystemExit(f"the {arguments[1]} server did not start")
        yield Server(process, int(line[0]), line[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def readings_of(devices: int) -> list[list[Reading]]:
    """SAMPLES ticks of busy GPUs that give every metric of the table: what is told each tick wanders, the rest stays."""
    bits = random.Random(0)
    metrics = [metric for metric in METRICS if "CPU only" not in metric.source and metric.group is None]
    scale = {Type.F32: 90.0, Type.I32: 60_000, Type.U64: 60 << 30, Type.COUNTER: 1 << 44, Type.MASK: 4}
    found: list[list[Reading]] = []
    for number in range(SAMPLES):
        tick: list[Reading] = []
        for _ in range(devices):
            row: Reading = {}
            for metric in metrics:
                value: float = scale[metric.type]
                if metric.cadence is Cadence.TICK and metric.type is Type.F32:
                    value = round(value + bits.uniform(-5, 5), 1)
                elif metric.cadence is Cadence.TICK and metric.type is Type.COUNTER:
                    value += 600_000 * number + bits.randrange(5_000)
                elif metric.cadence is Cadence.TICK and metric.type is not Type.MASK:
                    value += bits.randrange(2_000)
                row[metric.name] = value
            tick.append(row)
        found.append(tick)
    return found


@functools.cache
def ticks_of(devices: int) -> tuple[Sequence[MetricColumn], list[SampleTick]]:
    """Columns and SAMPLES ticks, packed by the very code that agents use."""
    packer = Packer("bench", [str(number) for number in range(devices)])
    every = readings_of(devices)
    packer.admit(every[0])
    packer.pack(every[0], seq=1, time_unix_us=1)  # the first one tells what no device gives
    return packer.schema.columns, [packer.pack(readings, seq=2, time_unix_us=2) for readings in every]


class Node:
    """One simulated node on its own connection."""

    def __init__(self, server: Server, number: int, devices: int) -> None:
        self.name = f"bench{number}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options)
        self._metadata = net.bearer(server.token if server.token != "-" else None)
        self.devices = [device.describe() for device in parse(self.name, f"{devices}xH100")]
        columns, self._ticks = ticks_of(devices)
        self.schema = MetricSchema(id=number + 1, columns=columns, device_ids=[device.id for device in self.devices])
        self._seq = 0
        self._beat_at = 0.0
        self.sent = 0
        self.phase_s = 0.0
        self._call: Any = self._channel.stream_stream(METHOD)(metadata=self._metadata)
        self._reader: asyncio.Task[None] | None = None

    async def attach(self) -> None:
        """Say hello, hear the slot, and go on reading whatever comes."""
        node = cluster_pb2.Node(name=self.name, incarnation="bench", version=__version__)
        hello = agent_pb2.Hello(node=node, devices=self.devices, outbox=self.name)
        await self._say(agent_pb2.AttachRequest(hello=hello))
        async with asyncio.timeout(30):
            first: Any = await self._call.read()
        welcome = agent_pb2.AttachResponse.FromString(first).welcome
        self.phase_s = welcome.phase_ms / 1000
        await self._say(agent_pb2.AttachRequest(schema=self.schema))
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await self._call.read() is not grpc.aio.EOF:
                pass

    async def _say(self, message: agent_pb2.AttachRequest) -> None:
        wire = message.SerializeToString()
        await self._call.write(wire)
        self.sent += len(wire)

    async def run(self, begin: float, ticks: int) -> None:
        """Send a tick at each full second of the run plus the phase."""
        for number in range(ticks):
            await asyncio.sleep(max(0.0, begin + number * TICK_S + self.phase_s - time.monotonic()))
            self._seq += 1
            tick = self._ticks[self._seq % SAMPLES]
            tick.schema_id, tick.seq, tick.time_unix_us = self.schema.id, self._seq, time.time_ns() // 1000
            await self._say(agent_pb2.AttachRequest(tick=tick))
            if number % BEAT_TICKS == 0:
                await self._say(agent_pb2.AttachRequest(heartbeat=agent_pb2.Heartbeat(time_unix_us=1)))

    async def beat(self) -> None:
        """Say that we are here, when that was long ago."""
        if (now := time.monotonic()) - self._beat_at > TICK_S:
            self._beat_at = now
            await self._say(agent_pb2.AttachRequest(heartbeat=agent_pb2.Heartbeat(time_unix_us=1)))

    async def close(self) -> None:
        """Hang up."""
        self._call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()


async def drive(server: Server, nodes: int, devices: int, seconds: int) -> None:
    """One turn: attach all, warm up, then count CPU over whole seconds."""
    every = [Node(server, number, devices) for number in range(nodes)]
    server.rss.append(server.memory())
    try:
        for first in range(0, nodes, 50):
            await asyncio.gather(*(node.attach() for node in every[first : first + 50]))
            # Attaching so many takes longer than a node may be silent.
            await asyncio.gather(*(node.beat() for node in every[:first]))
        begin = time.monotonic() + 0.5
        runs = asyncio.gather(*(node.run(begin, WARM_TICKS + seconds) for node in every))
        await asyncio.sleep(begin + WARM_TICKS * TICK_S - 0.2 - time.monotonic())
        cpu, sent = server.cpu(), sum(node.sent for node in every)
        await asyncio.sleep(begin + (WARM_TICKS + seconds) * TICK_S - 0.2 - time.monotonic())
        server.cpu_s.append(server.cpu() - cpu)
        server.received.append(sum(node.sent for node in every) - sent)
        await runs
        server.rss.append(server.memory())
        if server.token != "-":
            server.held.append(await server.rings())
    finally:
        await asyncio.gather(*(node.close() for node in every))


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """All servers, in turns."""
    with tempfile.TemporaryDirectory() as directory:
        async with (
            start("--serve", "bare") as bare,
            start("--serve", "tuned") as tuned,
            start("--serve", "host", "--directory", directory) as host,
        ):
            servers = [bare, tuned, host]
            for server in servers:
                # What a server loads with its first node is not what a node takes.
                await drive(server, 5, options.devices, 1)
                server.cpu_s, server.received, server.rss, server.held = [], [], [], []
            for number in range(options.rounds):
                for server in servers if number % 2 == 0 else reversed(servers):
                    await drive(server, options.nodes, options.devices, options.seconds)
    # Of the first turn: later ones find room that earlier ones left.
    extra = {server: (server.rss[1] - server.rss[0]) / options.nodes / 1024 for server in servers}
    held, ticks = host.held[0]
    bare_cpu, tuned_cpu, host_cpu = (sum(server.cpu_s) for server in servers)
    return {
        "benchmark": "ingest",
        "nodes": options.nodes,
        "devices": options.devices,
        "seconds": options.seconds,
        "bytes_per_s": round(statistics.median(host.received) / options.seconds),
        "same_bytes": max(host.received) <= 1.02 * min(bare.received),
        "host_cpu_percent": [round(100 * cpu / options.seconds, 1) for cpu in host.cpu_s],
        "bare_cpu_percent": [round(100 * cpu / options.seconds, 1) for cpu in bare.cpu_s],
        "tuned_cpu_percent": [round(100 * cpu / options.seconds, 1) for cpu in tuned.cpu_s],
        "ratios": [round(h / b, 2) for h, b in zip(host.cpu_s, bare.cpu_s, strict=True)],
        "host_to_bare_cpu": round(host_cpu / bare_cpu, 2),
        "limit": 1.25,
        "host_to_tuned_cpu": round(host_cpu / tuned_cpu, 2),
        "ring_bytes_per_tick": round(held / ticks),
        "tick_bytes": round(statistics.median(host.received) / options.seconds / options.nodes),
        "ring_kib_per_node": round(held / options.nodes / 1024, 1),
        "host_kib_per_node_over_ring": round(extra[host] - held / options.nodes / 1024, 1),
        "bare_kib_per_node": round(extra[bare], 1),
        "tuned_kib_per_node": round(extra[tuned], 1),
        "memory_limit_kib": 64,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--serve", choices=("bare", "tuned", "host"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        collect_seldom()  # as `gswarm host start` does
    if options.serve in ("tuned", "host"):
        share_heap()
    if options.serve == "bare":
        asyncio.run(serve_bare())
    elif options.serve == "tuned":
        asyncio.run(serve_bare(OPTIONS))
    elif options.serve == "host":
        asyncio.run(serve_host(options.directory))
    else:
        print(json.dumps(asyncio.run(measure(options))))


if __name__ == "__main__":
    main()
