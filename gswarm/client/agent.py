"""The agent's composition root: what runs on a node, in which order it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from gswarm import __version__, net
from gswarm.client.identity import AgentFile, StateLock, agents_dir, node_name
from gswarm.client.link import Link
from gswarm.client.outbox import Outbox
from gswarm.client.peer import LocalBackend, PeerServer
from gswarm.client.supervisor import Supervisor
from gswarm.config import Config
from gswarm.errors import GswarmError
from gswarm.swarm import Swarm
from gswarm.v1 import agent_pb2, cluster_pb2

if TYPE_CHECKING:
    from gswarm.profiler.gpu import Gpu

log = logging.getLogger("gswarm.agent")
FEATURES = ("peer", "data", "tasks")
ROTATE_S = 60.0


class Worker(Protocol):
    """What each room's `worker.py` gives the agent."""

    async def run(self) -> None:
        """Work until cancelled."""

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """A new desired state; must not block."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `gswarm client connect` was told."""

    endpoint: net.Endpoint
    resilient: bool = False
    name: str = ""
    simulate: str = ""
    extra_metrics: tuple[str, ...] = ()


class Agent:
    """One node. Workers are built from it and talk through it."""

    def __init__(self, config: Config, options: Options) -> None:
        """Raises RefusedError when an agent of this name runs here, InvalidError for a bad name or simulation."""
        from gswarm.profiler.devices import discover

        self.config, self.options = config, options
        self.name = node_name(options.name or config.client.name)
        self.incarnation = uuid.uuid4().hex
        self.state_dir: Path = agents_dir() / self.name
        self._lock = StateLock(self.state_dir)
        self.swarm = Swarm(options.endpoint)
        self.supervisor = Supervisor(self.state_dir)
        self.loopback = net.is_loopback(options.endpoint.host) and net.is_loopback(config.client.bind)
        machine = discover(
            self.name,
            options.simulate or config.client.simulate,
            options.extra_metrics or config.client.extra_metrics,
            self._xid,
            self.state_dir,
        )
        self.devices, self.metrics = machine.devices, machine.metrics
        self.desired = agent_pb2.DesiredState()
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Run until a signal, or until the host goes when not resilient (raises UnreachableError)."""
        from gswarm.data.worker import DataWorker
        from gswarm.model.worker import ModelWorker
        from gswarm.profiler.worker import ProfilerWorker
        from gswarm.queue.worker import QueueWorker

        self.loop = loop = asyncio.get_running_loop()

        def written() -> None:
            loop.call_soon_threadsafe(self.link.wake)

        outbox = Outbox(self.state_dir / "outbox.db", written)
        try:
            async with self.swarm:
                endpoint = self.options.endpoint
                self.link = Link(
                    self.swarm.channel,
                    endpoint.address,
                    self.swarm.token_text,
                    outbox,
                    lambda: self._hello(outbox),
                    self._receive,
                )
                self.peer = PeerServer(
                    self.config.client.bind, self.config.client.peer_port, self.state_dir, self._backend
                )
                self.supervisor.adopt()
                self.models = ModelWorker(self)
                self.data = DataWorker(self)
                self.tasks = QueueWorker(self)
                self.profiler = ProfilerWorker(self)
                self.workers: list[Worker] = [self.models, self.data, self.tasks, self.profiler]
                await self.peer.start()
                started = psutil.Process().create_time()
                AgentFile(self.name, os.getpid(), started, endpoint.address).write()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self.stopping.set)
                await self._work()
        finally:
            outbox.close()
            (self.state_dir / "agent.json").unlink(missing_ok=True)
            self._lock.release()

    async def _work(self) -> None:
        leave = False
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(worker.run(), name=type(worker).__name__) for worker in self.workers]
                tasks.append(group.create_task(self.link.run(resilient=self.options.resilient), name="link"))
                tasks.append(group.create_task(self._rotate(), name="rotate-logs"))
                await self.stopping.wait()
                leave = True
                log.info("agent stopping")
                # What this agent started ends with it; what it serves is desired state and starts again with the next.
                await self.models.stop_all()
                await self.link.goodbye("stopped")
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as group_error:
            error: BaseException = group_error
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        finally:
            if not leave:
                await self.models.stop_all()
            await self.peer.stop()

    async def _rotate(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_S)
            await asyncio.to_thread(self.supervisor.rotate_logs)

    def _backend(self, service: str) -> LocalBackend | None:
        process, ready = self.supervisor.get(service), self.models.ready(service)
        return LocalBackend(process.port, ready[1]) if process and ready else None

    def _xid(self, gpu: Gpu, number: int) -> None:
        """Called in the thread that waits for NVML's events."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: so does this process
            self.loop.call_soon_threadsafe(self.profiler.xid, gpu, number)

    def _hello(self, outbox: Outbox) -> agent_pb2.Hello:
        node = cluster_pb2.Node(
            name=self.name,
            incarnation=self.incarnation,
            version=__version__,
            features=FEATURES,
            peer_host=self._peer_host(),
            peer_port=self.peer.port,
            peer_certificate=self.peer.certificate,
            cpu_count=psutil.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            platform=platform.platform(),
            simulated=any(device.simulated for device in self.devices),
            backends=self.models.backends(),
            store_free_bytes=self.models.free_bytes(),
        )
        return agent_pb2.Hello(
            node=node,
            devices=[device.describe() for device in self.devices],
            report_seq=outbox.last_seq(),
            running=self.link.running_tasks(),
            outbox=outbox.id,
        )

    def _peer_host(self) -> str:
        bind = self.config.client.bind
        if bind not in ("0.0.0.0", "::"):
            return bind
        # The address by which this machine reaches the host is one by which it can be reached.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((self.options.endpoint.host, self.options.endpoint.port))
            return str(sock.getsockname()[0])

    def _receive(self, message: agent_pb2.AttachResponse) -> None:
        match message.WhichOneof("body"):
            case "welcome":
                self.peer.accept(message.welcome.peer_token)
                self.profiler.welcomed(message.welcome)
                self.models.welcomed()
            case "desired":
                self.desired = message.desired
                for worker in self.workers:
                    worker.desired(message.desired)
            case "lease":
                self.tasks.lease(message.lease)
            case "revoke":
                self.tasks.revoke(message.revoke)
            case "read_log":
                self.models.read_log(message.read_log)


async def run(config: Config, options: Options) -> None:
    """Run an agent; raises GswarmError."""
    agent = Agent(config, options)
    try:
        await agent.run()
    except GswarmError:
        log.warning("agent ends")
        raise
