"""The host's end of every agent: attach, two lanes, desired state, leases, and who has gone silent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from gswarm import __version__
from gswarm.errors import ExhaustedError, ForbiddenError, InvalidError, RefusedError, UnreachableError
from gswarm.host.auth import Caller, caller
from gswarm.host.clocks import Offset
from gswarm.host.connection import Connection
from gswarm.host.desired import Desired
from gswarm.host.membership import SILENT_BEATS, HelloHandler, clocks, is_news, join, left, lost, skew
from gswarm.host.reports import Reports
from gswarm.host.samples import SampleHub
from gswarm.host.state import Batch
from gswarm.host.store import Store
from gswarm.names import check_name
from gswarm.v1 import agent_pb2, agent_pb2_grpc, cluster_pb2
from gswarm.v1.cluster_pb2 import Node

log = logging.getLogger("gswarm.host")
HEARTBEAT_S = 2.0
TELL_BEATS = 3
"""We speak at every third beat: to many nodes that is most of what we send, and agents wait for five."""
PHASE_SLOTS = 10
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a node's peer port is and what opens it; `tls` None is plain, loopback only."""

    node: str
    host: str
    port: int
    token: str
    tls: ssl.SSLContext | None

    def url(self, path: str) -> str:
        """The URL of a path on it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"


class Nodes(agent_pb2_grpc.AgentServicer):
    """Every agent, attached or not. Rooms register handlers for their part of what agents report."""

    def __init__(self, store: Store, hub: SampleHub) -> None:
        self.store, self.hub = store, hub
        self.peer_token = secrets.token_urlsafe(32)
        self.desired = Desired(store)
        self.reports = Reports(store)
        self.keeps_ticks: Callable[[str], bool] = lambda node: False
        """Whether a recording wants a node's ticks; then they are acknowledged by `ack_ticks`, else at once."""
        self._connections: dict[str, Connection] = {}
        self._hellos: list[HelloHandler] = []
        self._heard: dict[str, float] = {}
        """When a node that is ready was last heard, monotonic, whether or not it is attached now."""
        self._logs: dict[int, tuple[str, asyncio.Queue[agent_pb2.LogChunk]]] = {}
        self._stream_ids = itertools.count(1)
        self._tls: dict[str, ssl.SSLContext] = {}
        self._slots = itertools.count()

    # What rooms use

    def handle_hello(self, handler: HelloHandler) -> None:
        """See each attach inside the transaction that makes the node ready (leases to renew, for example)."""
        self._hellos.append(handler)

    def connected(self, node: str) -> bool:
        """Whether the node's agent is attached now."""
        return node in self._connections

    def send(self, node: str, message: agent_pb2.AttachResponse) -> bool:
        """Send to an attached agent; False when it is not attached."""
        connection = self._connections.get(node)
        return connection is not None and connection.send(message)

    def ack_ticks(self, node: str, seq: int) -> None:
        """This tick, and all that were received before it, are on disk."""
        if connection := self._connections.get(node):
            connection.tick_acked = seq

    def peer(self, node: str) -> Peer:
        """The node's peer port. Raises UnreachableError while the node is away or has none."""
        found = self.store.state.get(Node, node)
        if found is None or found.phase != cluster_pb2.NODE_PHASE_READY or not found.peer_port:
            raise UnreachableError(
                f"node {node} cannot be reached", why=found.detail if found else "there is no such node"
            )
        tls = None
        if found.peer_certificate:
            tls = self._tls.get(found.peer_certificate)
            if tls is None:
                tls = ssl.create_default_context(cadata=found.peer_certificate)
                tls.check_hostname = False  # the certificate itself is pinned, whatever name it carries
                self._tls[found.peer_certificate] = tls
        return Peer(node, found.peer_host, found.peer_port, self.peer_token, tls)

    async def read_log(self, node: str, service: str, tail_bytes: int, *, follow: bool) -> AsyncIterator[bytes]:
        """A service's log from its node, oldest byte first. Raises UnreachableError when the node is away."""
        stream = next(self._stream_ids)
        queue: asyncio.Queue[agent_pb2.LogChunk] = asyncio.Queue()
        self._logs[stream] = (node, queue)
        request = agent_pb2.ReadLog(stream_id=stream, service=service, tail_bytes=tail_bytes, follow=follow)
        try:
            if not self.send(node, agent_pb2.AttachResponse(read_log=request)):
                raise UnreachableError(f"node {node} is not attached", next="its logs are read when it is back")
            while True:
                try:
                    async with asyncio.timeout(None if follow else 15):
                        chunk = await queue.get()
                except TimeoutError:
                    raise UnreachableError(f"node {node} does not answer") from None
                if chunk.error:
                    raise RefusedError(f"the log of {service} cannot be read", why=chunk.error)
                if chunk.chunk:
                    yield chunk.chunk
                if chunk.end:
                    return
        finally:
            del self._logs[stream]
            if follow:
                self.send(node, agent_pb2.AttachResponse(read_log=agent_pb2.ReadLog(stream_id=stream, cancel=True)))

    # Lifetime

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        agent_pb2_grpc.add_AgentServicer_to_server(self, server)

    async def run(self) -> None:
        """Push desired state as it changes, send heartbeats, and notice silence, until cancelled."""
        unsubscribe = self.store.subscribe(self._on_batch)
        # Agents that were there before this start get the time to come back.
        self._heard = {n.name: time.monotonic() for n in self.store.state.list(Node)} | self._heard
        try:
            for number in itertools.count():
                due = self._clock_due()
                await asyncio.sleep(due - time.monotonic())
                if (late := time.monotonic() - due) > HEARTBEAT_S:
                    # We were the silent one (suspended, or starved): that is no one else's silence.
                    self._heard = {name: heard + late for name, heard in self._heard.items()}
                if number % TELL_BEATS == 0:
                    self._tell_all()
                await self._notice_silence()
                await self._notice_clocks()
        finally:
            unsubscribe()
            for connection in self._connections.values():
                connection.cut()

    def _tell_all(self) -> None:
        beat = agent_pb2.Heartbeat(time_unix_us=time.time_ns() // 1000, revision=self.store.state.revision)
        message = agent_pb2.AttachResponse(heartbeat=beat)
        for connection in list(self._connections.values()):
            # An acknowledgement is a sign of life too; two messages would cost twice as much.
            connection.send(self._ack(connection) or message)

    def _ack(self, connection: Connection) -> agent_pb2.AttachResponse | None:
        """What of a node's ticks is safe since it was told last."""
        if not self.keeps_ticks(connection.node):
            connection.tick_acked = connection.tick_seq
        if connection.tick_acked == connection.tick_told:
            return None
        connection.tick_told = connection.tick_acked
        ack = agent_pb2.Ack(tick_seq=connection.tick_acked, time_unix_us=time.time_ns() // 1000)
        return agent_pb2.AttachResponse(ack=ack)

    @staticmethod
    def _clock_due() -> float:
        return (time.monotonic() // HEARTBEAT_S + 1) * HEARTBEAT_S

    async def _notice_silence(self) -> None:
        limit, now = HEARTBEAT_S * SILENT_BEATS, time.monotonic()
        for node in list(self.store.state.list(Node)):
            silent_s = now - self._heard.setdefault(node.name, now)
            if silent_s <= limit:
                continue
            if connection := self._connections.pop(node.name, None):
                connection.cut()
            if node.phase == cluster_pb2.NODE_PHASE_READY:
                # A full disk must not keep heartbeats back: it is noticed again at the next.
                with contextlib.suppress(ExhaustedError):
                    await self.store.apply(lost(node.name, silent_s), actor="host", method="silence")

    async def _notice_clocks(self) -> None:
        found: dict[str, Offset] = {}
        for name, connection in self._connections.items():
            node, offset = self.store.state.get(Node, name), connection.clock.offset
            if node is not None and offset is not None and is_news(node, offset):
                found[name] = offset
        if found:
            await self.store.apply(clocks(found), actor="host", durable=False)

    def _on_batch(self, batch: Batch) -> None:
        for name in self.desired.concerned(batch):
            self.push_desired(name)

    def push_desired(self, name: str) -> None:
        """Send a node all that it should make true, once, however many changes led to it."""
        connection = self._connections.get(name)
        if connection is None or connection.desired_due:
            return
        connection.desired_due = True

        def push() -> None:
            connection.desired_due = False
            if self._connections.get(name) is connection:
                connection.send(agent_pb2.AttachResponse(desired=self.desired.of(name)))

        asyncio.get_running_loop().call_soon(push)

    # The stream

    async def Attach(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[agent_pb2.AttachRequest],
        context: Context,
    ) -> None:
        """One agent, from hello to goodbye."""
        who = caller(context)
        first = await context.read()
        if not isinstance(first, agent_pb2.AttachRequest) or first.WhichOneof("body") != "hello":
            raise InvalidError("an agent says hello first")
        connection = await self._welcome(first.hello, who, context)
        del first  # it would be held for as long as the node is here
        try:
            async with connection:
                await self._read(connection, context)
        finally:
            if self._connections.get(connection.node) is connection:
                del self._connections[connection.node]

    async def _welcome(self, hello: agent_pb2.Hello, who: Caller, context: Context) -> Connection:
        name = check_name(hello.node.name, "node name")
        if who.node and who.node != name:
            raise ForbiddenError(f"this token may speak for node {who.node} only", why=f"the agent says it is {name}")
        detail = skew(hello.node.version)
        for device in hello.devices:
            if device.node != name:
                raise InvalidError(f"device {device.id} claims to be on {device.node}", field="devices")
        self._fence(name, hello)
        slot = next(self._slots) % PHASE_SLOTS * (100 // PHASE_SLOTS)
        seq = await self.store.apply(join(hello, detail, self._hellos), actor=f"node:{name}", method="attach")
        welcome = agent_pb2.Welcome(
            host_version=__version__,
            report_seq=seq,
            phase_ms=slot,
            heartbeat_s=HEARTBEAT_S,
            sample_interval_s=self.desired.interval_s(name),
            peer_token=self.peer_token,
        )
        desired = self.desired.of(name)
        # From here on nothing fails: a connection that is known is held, and forgotten when it ends.
        connection = Connection(name, hello.node.incarnation, hello.outbox, context.write, self.reports.apply)
        if old := self._connections.get(name):
            old.cut()
        self._connections[name], self._heard[name] = connection, time.monotonic()
        self._end_logs(name)
        # Through the queue like all else: a state computed later must never be overtaken by an older one.
        connection.send(agent_pb2.AttachResponse(welcome=welcome))
        connection.send(agent_pb2.AttachResponse(desired=desired))
        return connection

    def _end_logs(self, name: str) -> None:
        """An agent that attaches anew sends nothing more of the logs that it was asked for before."""
        for node, queue in self._logs.values():
            if node == name:
                queue.put_nowait(
                    agent_pb2.LogChunk(end=True, error=f"node {name} was cut off meanwhile; read it again")
                )

    def _fence(self, name: str, hello: agent_pb2.Hello) -> None:
        """Let one agent speak for a node. Raises RefusedError for a second one.

        A restarted agent has the same outbox and its own state directory's lock, so the one before is gone. Another
        outbox under the same name is another machine, and must not take the name while its owner is heard.
        """
        old = self._connections.get(name)
        if old is None:
            return
        if old.outbox != hello.outbox and time.monotonic() - self._heard.get(name, 0.0) < HEARTBEAT_S * SILENT_BEATS:
            raise RefusedError(
                f"a node named {name} is attached already",
                why="another agent speaks for it",
                next="give this agent another name with --name, or stop the other",
            )
        log.info("node %s attached anew; its older stream is cut off", name)

    async def _read(self, connection: Connection, context: Context) -> None:
        while True:
            message = await context.read()
            if not isinstance(message, agent_pb2.AttachRequest):
                return
            self._heard[connection.node] = time.monotonic()
            match message.WhichOneof("body"):
                case "tick":
                    message.tick.node = connection.node
                    self.hub.add(message.tick)
                    connection.tick_seq = message.tick.seq
                case "heartbeat":
                    self._hear(connection, message.heartbeat)
                case "report":
                    await connection.report(message.report)
                case "schema":
                    message.schema.node = connection.node
                    self.hub.add_schema(message.schema)
                case "progress":
                    await self.reports.progress(connection, message.progress)
                case "log":
                    asked, queue = self._logs.get(message.log.stream_id, ("", None))
                    if queue is not None and asked == connection.node:
                        queue.put_nowait(message.log)
                case "goodbye":
                    if self._connections.get(connection.node) is connection:
                        del self._connections[connection.node]
                    operation = left(connection, message.goodbye.reason)
                    await self.store.apply(operation, actor=f"node:{connection.node}", method="goodbye")
                    return
            del message  # most of an attached node's life passes in waiting for the next

    @staticmethod
    def _hear(connection: Connection, beat: agent_pb2.Heartbeat) -> None:
        # An agent that has not heard from us yet echoes 0, which is no exchange.
        now_us = time.time_ns() // 1000
        connection.clock.exchange(beat.echo_unix_us, beat.held_us, beat.time_unix_us, now_us)
