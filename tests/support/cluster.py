"""A whole host in this process, agents beside it in this process or as real ones, and a client that looks at them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gswarm import net
from gswarm.client.agent import Agent, Options
from gswarm.cluster.types import Node, NodePhase
from gswarm.config import Config, HostConfig
from gswarm.host.server import HostContext, host
from gswarm.mirror import Mirror
from gswarm.swarm import Swarm
from tests.support.processes import BIN

T = TypeVar("T")
PORTS = HostConfig(port=0, http_port=0, model_port=0)
CONFIG = Config(host=PORTS)


@dataclass
class Cluster:
    """A running host, and the way to it."""

    context: HostContext
    swarm: Swarm

    @property
    def endpoint(self) -> net.Endpoint:
        return net.Endpoint("127.0.0.1", self.context.file.port, self.context.token)

    @contextlib.asynccontextmanager
    async def agent(self, name: str, simulate: str = "1xH100") -> AsyncIterator[Agent]:
        """An agent in this process, once it is attached; it leaves at the end."""
        agent = Agent(self.context.config, Options(self.endpoint, resilient=True, name=name, simulate=simulate))
        running = asyncio.create_task(agent.run())
        try:
            async with self.swarm.mirror((Node,), samples=False) as mirror:
                ready = NodePhase.READY
                await seen(mirror, lambda: mirror.rows(Node).get(name), lambda n: n is not None and n.phase is ready)
            yield agent
        finally:
            agent.stopping.set()
            async with asyncio.timeout(20):
                await running

    @contextlib.contextmanager
    def agent_process(self, name: str, env: Mapping[str, str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
        """An agent as a process of its own, killed at the end if it still runs."""
        with (directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / "gswarm"), "client", "connect", self.endpoint.address, "--name", name, "--resilient"],
                env={**os.environ, **env, "GSWARM_TOKEN": str(self.context.token)},
                cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait(10)


@contextlib.asynccontextmanager
async def cluster(directory: Path, config: Config = CONFIG) -> AsyncIterator[Cluster]:
    """A host on free ports with its state in `directory`, which must be GSWARM_STATE_DIR too."""
    async with host(config, directory) as context:
        endpoint = net.Endpoint("127.0.0.1", context.file.port, context.token)
        async with Swarm(endpoint) as swarm:
            yield Cluster(context, swarm)


async def seen(mirror: Mirror, read: Callable[[], T], accept: Callable[[T], bool], timeout: float = 30) -> T:
    """Follow a mirror until what is read from it is accepted; the last value is in the failure."""
    value = read()
    try:
        async with asyncio.timeout(timeout):
            while not accept(value):
                updated = mirror.updated
                value = read()
                if not accept(value):
                    await updated.wait()
    except TimeoutError:
        raise AssertionError(f"did not come true; last seen: {value}") from None
    return value
