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
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from gswarm import __version__
from gswarm.errors import ForbiddenError, InvalidError, RefusedError, UnreachableError
from gswarm.host.auth import Caller, caller
from gswarm.host.desired import Desired
from gswarm.host.samples import SampleHub
from gswarm.host.store import Batch, Store, Transaction
from gswarm.names import check_name
from gswarm.v1 import agent_pb2, agent_pb2_grpc, cluster_pb2, common_pb2
from gswarm.v1.cluster_pb2 import Device, Node

log = logging.getLogger("gswarm.host")
HEARTBEAT_S = 2.0
SILENT_BEATS = 3
OUTBOX_LIMIT = 4096
REPORT_GROUP = 256
PHASE_SLOTS = 10
Context = grpc.aio.ServicerContext[Any, Any]
ReportHandler = Callable[[Transaction, str, agent_pb2.Report], None]
ProgressHandler = Callable[[Transaction, str, agent_pb2.Progress], None]
HelloHandler = Callable[[Transaction, str, agent_pb2.Hello], None]


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


@dataclass(eq=False, slots=True)
class Connection:
    """One attached agent: what waits to be sent, and when it was last heard."""

    node: str
    incarnation: str
    outbox: str
    queue: asyncio.Queue[agent_pb2.AttachResponse] = field(default_factory=lambda: asyncio.Queue(OUTBOX_LIMIT))
    reports: asyncio.Queue[agent_pb2.Report] = field(default_factory=lambda: asyncio.Queue(OUTBOX_LIMIT))
    heard: float = field(default_factory=time.monotonic)
    tick_seq: int = 0
    tick_acked: int = 0
    desired_due: bool = False
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: agent_pb2.AttachResponse) -> bool:
        """Queue a message; an agent that reads nothing for thousands of messages is cut off and attaches anew."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.closed.set()
            return False
        return True


class Nodes(agent_pb2_grpc.AgentServicer):
    """Every agent, attached or not. Rooms register handlers for their part of what agents report."""

    def __init__(self, store: Store, hub: SampleHub) -> None:
        self.store, self.hub = store, hub
        self.peer_token = secrets.token_urlsafe(32)
        self.desired = Desired(store)
        self.keeps_ticks: Callable[[str], bool] = lambda node: False
        """Whether a recording wants a node's ticks; then they are acknowledged by `ack_ticks`, else at once."""
        self._connections: dict[str, Connection] = {}
        self._reports: dict[str, ReportHandler] = {}
        self._progress: list[ProgressHandler] = []
        self._hellos: list[HelloHandler] = []
        self._logs: dict[int, asyncio.Queue[agent_pb2.LogChunk]] = {}
        self._stream_ids = itertools.count(1)
        self._tls: dict[str, ssl.SSLContext] = {}
        self._started = time.monotonic()
        self._slots = itertools.count()
        self.handle("devices", self._devices)
        self.handle("event", self._event)

    # What rooms use

    def handle(self, slot: str, handler: ReportHandler) -> None:
        """Apply reports with this body; runs in the transaction that stores their sequence number."""
        if slot in self._reports:
            raise ValueError(f"reports of {slot} have a handler")
        self._reports[slot] = handler

    def handle_progress(self, handler: ProgressHandler) -> None:
        """See every progress message; runs in a transaction that is not written to disk."""
        self._progress.append(handler)

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
        self._logs[stream] = queue
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
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_S - time.monotonic() % HEARTBEAT_S)
                beat = agent_pb2.Heartbeat(time_unix_us=time.time_ns() // 1000, revision=self.store.state.revision)
                message = agent_pb2.AttachResponse(heartbeat=beat)
                for connection in list(self._connections.values()):
                    self._ack(connection)
                    connection.send(message)
                await self._notice_silence()
        finally:
            unsubscribe()
            for connection in self._connections.values():
                connection.closed.set()

    def _ack(self, connection: Connection) -> None:
        if not self.keeps_ticks(connection.node):
            connection.tick_acked = connection.tick_seq
        if connection.tick_acked:
            connection.send(agent_pb2.AttachResponse(ack=agent_pb2.Ack(tick_seq=connection.tick_acked)))

    async def _notice_silence(self) -> None:
        limit, now = HEARTBEAT_S * SILENT_BEATS, time.monotonic()
        for connection in list(self._connections.values()):
            if now - connection.heard > limit:
                connection.closed.set()
                self._connections.pop(connection.node, None)
        if now - self._started < limit:
            return  # agents get the time to come back after a host start
        for node in list(self.store.state.list(Node)):
            if node.phase == cluster_pb2.NODE_PHASE_READY and node.name not in self._connections:
                await self.store.apply(_lost(node.name), actor="host", method="silence")

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
        reader = asyncio.create_task(self._read(connection, context), name=f"attach-read-{connection.node}")
        writer = asyncio.create_task(self._write(connection, context), name=f"attach-write-{connection.node}")
        applier = asyncio.create_task(self._apply_reports(connection), name=f"attach-apply-{connection.node}")
        closed = asyncio.create_task(connection.closed.wait(), name=f"attach-closed-{connection.node}")
        tasks: tuple[asyncio.Task[Any], ...] = (reader, writer, applier, closed)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (reader, applier):
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._connections.get(connection.node) is connection:
                del self._connections[connection.node]

    async def _welcome(self, hello: agent_pb2.Hello, who: Caller, context: Context) -> Connection:
        name = check_name(hello.node.name, "node name")
        if who.node and who.node != name:
            raise ForbiddenError(f"this token may speak for node {who.node} only", why=f"the agent says it is {name}")
        detail = _skew(hello.node.version)
        for device in hello.devices:
            if device.node != name:
                raise InvalidError(f"device {device.id} claims to be on {device.node}", field="devices")
        old = self._connections.get(name)
        if old is not None and old.incarnation != hello.node.incarnation:
            log.warning("node %s attached anew; the older agent is cut off", name)
            old.closed.set()
        slot = next(self._slots) % PHASE_SLOTS * (100 // PHASE_SLOTS)
        seq = await self.store.apply(self._join(hello, detail), actor=f"node:{name}", method="attach")
        connection = Connection(name, hello.node.incarnation, hello.outbox)
        self._connections[name] = connection
        welcome = agent_pb2.Welcome(
            host_version=__version__,
            report_seq=seq,
            phase_ms=slot,
            heartbeat_s=HEARTBEAT_S,
            sample_interval_s=self.desired.interval_s(name),
            peer_token=self.peer_token,
        )
        await context.write(agent_pb2.AttachResponse(welcome=welcome))
        await context.write(agent_pb2.AttachResponse(desired=self.desired.of(name)))
        return connection

    def _join(self, hello: agent_pb2.Hello, detail: str) -> Callable[[Transaction], int]:
        def operation(tx: Transaction) -> int:
            name = hello.node.name
            node = Node()
            node.CopyFrom(hello.node)
            known = tx.get(Node, name)
            node.phase, node.detail = cluster_pb2.NODE_PHASE_READY, detail
            if known is not None and known.HasField("joined_at"):
                node.joined_at.CopyFrom(known.joined_at)
            else:
                node.joined_at.FromDatetime(tx.now)
            node.last_seen.FromDatetime(tx.now)
            tx.put(node)
            _put_devices(tx, name, list(hello.devices))
            if known is None or known.phase != cluster_pb2.NODE_PHASE_READY or known.incarnation != node.incarnation:
                what = "joined" if known is None else "is back"
                tx.event("node.ready", f"{name} {what} with {len(hello.devices)} devices", subject=node)
            if detail and (known is None or known.detail != detail):
                tx.event("node.skew", f"{name}: {detail}", subject=node, severity=common_pb2.SEVERITY_WARNING)
            for handler in self._hellos:
                handler(tx, name, hello)
            return _stored_seq(tx, name, hello.outbox)

        return operation

    async def _read(
        self,
        connection: Connection,
        context: Context,
    ) -> None:
        while True:
            message = await context.read()
            if not isinstance(message, agent_pb2.AttachRequest):
                return
            connection.heard = time.monotonic()
            match message.WhichOneof("body"):
                case "tick":
                    message.tick.node = connection.node
                    self.hub.add(message.tick)
                    connection.tick_seq = message.tick.seq
                case "report":
                    await connection.reports.put(message.report)
                case "schema":
                    message.schema.node = connection.node
                    self.hub.add_schema(message.schema)
                case "progress":
                    await self.store.apply(
                        self._progressed(connection.node, message.progress),
                        actor=f"node:{connection.node}",
                        durable=False,
                    )
                case "log":
                    if queue := self._logs.get(message.log.stream_id):
                        queue.put_nowait(message.log)
                case "goodbye":
                    self._connections.pop(connection.node, None)
                    operation = _left(connection.node, message.goodbye.reason)
                    await self.store.apply(operation, actor=f"node:{connection.node}", method="goodbye")
                    return

    async def _write(
        self,
        connection: Connection,
        context: Context,
    ) -> None:
        while True:
            await context.write(await connection.queue.get())

    async def _apply_reports(self, connection: Connection) -> None:
        """Apply what was reported, many in one transaction, then acknowledge."""
        while True:
            group = [await connection.reports.get()]
            while len(group) < REPORT_GROUP and not connection.reports.empty():
                group.append(connection.reports.get_nowait())
            seq = await self.store.apply(
                self._reported(connection, group), actor=f"node:{connection.node}", method="report"
            )
            connection.send(agent_pb2.AttachResponse(ack=agent_pb2.Ack(report_seq=seq)))

    def _reported(self, connection: Connection, group: list[agent_pb2.Report]) -> Callable[[Transaction], int]:
        def operation(tx: Transaction) -> int:
            last = _stored_seq(tx, connection.node, connection.outbox)
            for report in group:
                if report.seq <= last:
                    continue  # told again after a cut
                last = report.seq
                slot = report.WhichOneof("body") or ""
                if handler := self._reports.get(slot):
                    handler(tx, connection.node, report)
                else:
                    log.warning("node %s reported %r, which this host does not know", connection.node, slot)
            tx.put_value(f"reports:{connection.node}", f"{connection.outbox} {last}".encode())
            return last

        return operation

    def _progressed(self, node: str, progress: agent_pb2.Progress) -> Callable[[Transaction], None]:
        def operation(tx: Transaction) -> None:
            for handler in self._progress:
                handler(tx, node, progress)

        return operation

    def _devices(self, tx: Transaction, node: str, report: agent_pb2.Report) -> None:
        _put_devices(tx, node, list(report.devices.devices))

    def _event(self, tx: Transaction, node: str, report: agent_pb2.Report) -> None:
        told = report.event
        tx.event(told.type, told.message, severity=told.severity or common_pb2.SEVERITY_INFO)


def _stored_seq(tx: Transaction, node: str, outbox: str) -> int:
    known, _, seq = (tx.get_value(f"reports:{node}") or b"").decode().rpartition(" ")
    return int(seq) if known == outbox and seq else 0


def _put_devices(tx: Transaction, node: str, devices: list[Device]) -> None:
    told = {device.id: device for device in devices if device.node == node}
    for known in list(tx.list(Device)):
        if known.node == node and known.id not in told:
            tx.delete(Device, known.id)
    for device in told.values():
        before = tx.get(Device, device.id)
        fresh = Device()
        fresh.CopyFrom(device)
        if before is not None:
            fresh.changed_at.CopyFrom(before.changed_at)
        if before is None or fresh != before:
            fresh.changed_at.FromDatetime(tx.now)
            tx.put(fresh)
        if before is not None and before.phase != device.phase and device.phase == cluster_pb2.DEVICE_PHASE_LOST:
            tx.event(
                "device.lost", f"{device.alias}: {device.detail}", subject=fresh, severity=common_pb2.SEVERITY_ERROR
            )


def _lost(name: str) -> Callable[[Transaction], None]:
    def operation(tx: Transaction) -> None:
        node = tx.edit(Node, name)
        if node is None or node.phase != cluster_pb2.NODE_PHASE_READY:
            return
        node.phase = cluster_pb2.NODE_PHASE_UNREACHABLE
        node.detail = f"silent for {SILENT_BEATS} heartbeats"
        tx.put(node)
        tx.event("node.unreachable", f"{name} is silent", subject=node, severity=common_pb2.SEVERITY_ERROR)

    return operation


def _left(name: str, reason: str) -> Callable[[Transaction], None]:
    def operation(tx: Transaction) -> None:
        node = tx.edit(Node, name)
        if node is None:
            return
        node.phase, node.detail = cluster_pb2.NODE_PHASE_LEFT, reason
        tx.put(node)
        tx.event("node.left", f"{name} left: {reason or 'stopped'}", subject=node)

    return operation


def _skew(version: str) -> str:
    """What to say of an agent's version; one minor older or newer is taken. Raises RefusedError beyond."""
    with contextlib.suppress(ValueError):
        ours, theirs = ([int(part) for part in text.split(".")[:2]] for text in (__version__, version))
        if ours == theirs:
            return ""
        if ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= 1:
            return f"runs gswarm {version}, the host {__version__}"
    raise RefusedError(
        f"an agent of gswarm {version or '?'} cannot attach to a host of {__version__}",
        next="upgrade the older of the two",
    )
