"""A host and an agent as processes that a test may kill, and a client that looks at the state on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from gswarm import net
from gswarm.swarm import Swarm
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, profiler_pb2
from tests.support.processes import BIN, Installation, installation

T = TypeVar("T")
READY = models_pb2.SERVICE_PHASE_READY
KINDS = (
    common_pb2.KIND_NODE,
    common_pb2.KIND_PLACEMENT,
    common_pb2.KIND_SERVICE,
    common_pb2.KIND_EVENT,
)


class Running:
    """A host and an agent as processes, and a client to look at them."""

    def __init__(self, installed: Installation) -> None:
        self.installed = installed
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.installed.root / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / "gswarm"), *arguments], env=self.installed.env, cwd=self.installed.root,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def host(self) -> subprocess.Popen[bytes]:
        return self.start("host", "start")

    def agent(self, *, port: int = 0, resilient: bool = True) -> subprocess.Popen[bytes]:
        address = f"127.0.0.1:{port or self.installed.port}"
        (self.installed.root / "token").write_text(self.token())
        return self.start(
            "client", "connect", address, "--name", "n1", "--simulate", "2xH100", "--token-file", "token",
            *(["--resilient"] if resilient else []),
        )  # fmt: skip

    def token(self) -> str:
        (path,) = self.installed.state.glob("*/host.token")
        return path.read_text()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        endpoint = net.Endpoint("127.0.0.1", self.installed.port, net.Token.parse(self.token()))
        async with Swarm(endpoint) as swarm:
            yield Client(swarm)

    def backends(self) -> list[psutil.Process]:
        """Leaders of the sessions that carry a service's mark."""
        found = []
        for process in self.installed.processes():
            with contextlib.suppress(psutil.Error, OSError):
                if "GSWARM_SERVICE" in process.environ() and os.getsid(process.pid) == process.pid:
                    found.append(process)
        return found

    def log(self) -> str:
        return (self.installed.root / "processes.log").read_text()[-6000:]


class Client:
    """Looks at the host's state as it is on the wire."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm

    async def look(self) -> list[cluster_pb2.Object]:
        request = cluster_pb2.WatchRequest(kinds=KINDS, list_only=True, limit=5_000)
        return [obj async for response in self.swarm.watch(request) for obj in response.objects]

    async def service(self, name: str) -> models_pb2.Service:
        return next(
            (o.service for o in await self.look() if o.HasField("service") and o.key == name), models_pb2.Service()
        )

    async def node(self) -> cluster_pb2.Node:
        return next((o.node for o in await self.look() if o.HasField("node")), cluster_pb2.Node())

    async def events(self, kind: str) -> list[common_pb2.Event]:
        return [o.event for o in await self.look() if o.HasField("event") and o.event.type == kind]

    async def stored(self) -> int:
        phases = [o.placement.phase for o in await self.look() if o.HasField("placement")]
        return phases.count(models_pb2.PLACEMENT_PHASE_STORED)

    async def insist(self, request: Any, request_id: str) -> Any:
        """The answer to a request, asked again with its id while hosts come and go."""
        request.meta.request_id = request_id
        for attempt in range(10):
            try:
                return await self.swarm.call(request)
            except Exception:
                if attempt == 9:
                    raise
                await asyncio.sleep(0.5)
        raise AssertionError

    async def download(self, name: str) -> None:
        request = models_pb2.DownloadRequest(name=name, source="simulated:1GiB", nodes=["n1"])
        await self.insist(request, f"download-{name}")

    async def serve(self, name: str) -> models_pb2.Service:
        await self.download(name)
        await eventually(self.stored, lambda count: count >= 1)
        await self.swarm.call(models_pb2.ServeRequest(model=name, devices=["n1:gpu0"], options={"load_s": "0.1"}))
        return await eventually(lambda: self.service(name), lambda s: s.phase == READY)

    async def tick_numbers(self) -> list[int]:
        """What the host has of the node's samples, in its order."""
        request = cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_NODE])
        request.samples.history_s = 600
        ticks: list[profiler_pb2.SampleTick] = []
        async for response in self.swarm.watch(request, silence_s=20):
            ticks += response.ticks
            if ticks:
                break
        return [tick.seq for tick in ticks]


async def eventually(read: Callable[[], Awaitable[T]], accept: Callable[[T], bool], timeout: float = 60) -> T:
    """Read until accepted; a host that is not there yet is no answer."""
    last: object = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(Exception):
                    last = value = await read()
                    if accept(value):
                        return value
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"it did not come true in {timeout} s; last seen: {last}") from None


async def ready(client: Client) -> cluster_pb2.Node:
    return await eventually(client.node, lambda n: n.phase == cluster_pb2.NODE_PHASE_READY)


@contextlib.contextmanager
def started(root: Path) -> Iterator[Running]:
    """A host that is up; whatever was started is gone at the end."""
    with installation(root) as installed:
        everything = Running(installed)
        everything.host()
        deadline = 100
        while not list(installed.state.glob("*/host.json")):
            deadline -= 1
            assert deadline, everything.log()
            time.sleep(0.1)
        yield everything
        print(everything.log())  # noqa: T201 - shown when the test fails
