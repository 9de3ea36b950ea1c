"""The agent's stream to its host: hello, two lanes up, desired state and leases down, reconnecting for ever."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
import grpc.aio

from gswarm import net
from gswarm.client.outbox import Outbox
from gswarm.client.ring import Ring
from gswarm.errors import (
    ForbiddenError,
    GswarmError,
    InvalidError,
    RefusedError,
    UnauthenticatedError,
    UnreachableError,
)
from gswarm.v1 import agent_pb2, profiler_pb2
from gswarm.v1.agent_pb2_grpc import AgentStub

log = logging.getLogger("gswarm.agent")
PROGRESS_S = 0.5
BACKOFF_S = (0.2, 3.0)
SILENT_BEATS = 5
"""The host speaks at every third beat, older ones at every second."""
FINAL = (ForbiddenError, InvalidError, RefusedError, UnauthenticatedError)


class Link:
    """One agent's connection. `report` is durable and ordered, `sample` buffered, `progress_*` lossy."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        token: str,
        outbox: Outbox,
        hello: Callable[[], agent_pb2.Hello],
        receive: Callable[[agent_pb2.AttachResponse], None],
    ) -> None:
        self._stub = AgentStub(channel)
        self._address, self._token = address, token
        self._outbox, self._hello, self._receive = outbox, hello, receive
        self._ring = Ring()
        self._schemas: dict[int, profiler_pb2.MetricSchema] = {}
        self._progress = agent_pb2.Progress()
        self._told: dict[str, Any] = {}
        self._out: asyncio.Queue[agent_pb2.AttachRequest] = asyncio.Queue(256)
        self._wake_reports, self._wake_ticks = asyncio.Event(), asyncio.Event()
        self._acked = 0
        self._running: Callable[[], list[agent_pb2.TaskAttempt]] = list
        self.facts: Callable[[], agent_pb2.NodeFacts] = agent_pb2.NodeFacts
        """What of the node may change while attached; asked at every heartbeat, in a thread."""
        self.welcome: agent_pb2.Welcome | None = None
        """What the host said last; None before the first attach."""
        self.attached = asyncio.Event()
        self.detached = asyncio.Event()
        self.attaches = 0
        self._leaving = False
        self._host_us, self._host_heard_ns = 0, time.monotonic_ns()

    # What workers say

    def report(self, **body: Any) -> None:
        """Say durably what happened, for example `report(service=ServiceReport(...))`."""
        report = agent_pb2.Report(**body)
        report.time.FromDatetime(datetime.now(UTC))
        self._outbox.put(report)

    def wake(self) -> None:
        """New reports are on disk (called on the loop)."""
        self._wake_reports.set()

    def schema(self, schema: profiler_pb2.MetricSchema) -> None:
        """Announce the layout of the ticks to come. Older ones are kept, for ticks that wait may use them."""
        self._schemas[schema.id] = schema
        if self.attached.is_set():
            self._say(agent_pb2.AttachRequest(schema=schema))

    def sample(self, tick: profiler_pb2.SampleTick) -> None:
        """Send a tick, or keep it until the host is back."""
        self._ring.add(tick)
        self._wake_ticks.set()

    def progress_service(self, report: agent_pb2.ServiceReport) -> None:
        """How far a service is; the next one replaces it."""
        self._told[f"service {report.name}"] = report

    def progress_placement(self, report: agent_pb2.PlacementReport) -> None:
        """How far a download is."""
        self._told[f"placement {report.id}"] = report

    def progress_location(self, report: agent_pb2.LocationReport) -> None:
        """How far a transfer is."""
        self._told[f"location {report.chunk_id}"] = report

    def progress_processes(self, report: agent_pb2.DeviceProcesses) -> None:
        """What runs on a device."""
        self._told[f"processes {report.device_id}"] = report

    def running(self, tasks: Callable[[], list[agent_pb2.TaskAttempt]]) -> None:
        """Who knows which tasks run here, for renewing their leases."""
        self._running = tasks

    def running_tasks(self) -> list[agent_pb2.TaskAttempt]:
        """Task attempts that run here now."""
        return self._running()

    def log_chunk(self, chunk: agent_pb2.LogChunk) -> None:
        """A piece of a log that the host asked for."""
        self._say(agent_pb2.AttachRequest(log=chunk))

    def _say(self, message: agent_pb2.AttachRequest) -> None:
        try:
            self._out.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("the host does not read; a message was dropped")

    # The connection

    async def run(self, *, resilient: bool) -> None:
        """Stay attached until goodbye. Without `resilient` raises UnreachableError when the host goes; final refusals raise."""
        pause = BACKOFF_S[0]
        while True:
            try:
                await self._attach()
                reason = "the host ended the stream"
                pause = BACKOFF_S[0]
            except GswarmError as error:
                if isinstance(error, FINAL) and not (resilient and self.attaches):
                    raise
                reason = str(error)
                if not resilient and not self._leaving:
                    raise
            finally:
                self.attached.clear()
                self.detached.set()
            if self._leaving:
                return
            if not resilient:
                raise UnreachableError(
                    f"the host at {self._address} went away", why=reason, next="use --resilient to wait for it"
                )
            log.warning("no host: %s; trying again in %.1f s", reason, pause)
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(pause * 2, BACKOFF_S[1])

    async def _attach(self) -> None:
        call = self._stub.Attach(metadata=net.bearer(self._token))
        deadline = net.CONNECT_S if not self.attaches else 10.0
        try:
            async with asyncio.timeout(deadline):
                await call.write(agent_pb2.AttachRequest(hello=self._hello()))
                first = await call.read()
            if not isinstance(first, agent_pb2.AttachResponse) or first.WhichOneof("body") != "welcome":
                await _raise_status(call, self._address)
                raise UnreachableError(f"{self._address} does not answer like a gswarm host")
            # What was applied although its acknowledgement was lost in the cut.
            await asyncio.to_thread(self._outbox.delete, first.welcome.report_seq)
            self._start_over(first.welcome)
            self._receive(first)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(part, name=f"link-{name}")
                    for name, part in (
                        ("write", self._write(call)),
                        ("reports", self._send_reports()),
                        ("ticks", self._send_ticks()),
                        ("beat", self._beat(first.welcome.heartbeat_s or 2.0)),
                    )
                ]
                await self._read(call, (first.welcome.heartbeat_s or 2.0) * SILENT_BEATS)
                for task in tasks:
                    task.cancel()
            await _raise_status(call, self._address)
        except TimeoutError:
            raise net.unreachable(self._address, f"no answer for {deadline:g} s") from None
        except grpc.aio.AioRpcError as error:
            _raise(error, self._address)
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            await _raise_status(call, self._address)
            raise UnreachableError(f"the stream to {self._address} broke") from None
        except BaseExceptionGroup as group_error:
            for inner in group_error.exceptions:
                if isinstance(inner, grpc.aio.AioRpcError):
                    _raise(inner, self._address)
                if isinstance(inner, asyncio.InvalidStateError | grpc.aio.UsageError):
                    await _raise_status(call, self._address)
                    raise UnreachableError(f"the stream to {self._address} broke") from None
                if isinstance(inner, GswarmError):
                    raise inner from None
            raise
        finally:
            call.cancel()

    def _start_over(self, welcome: agent_pb2.Welcome) -> None:
        self.welcome = welcome
        self.attaches += 1
        self._acked = welcome.report_seq
        self._host_us = 0
        self._ring.reconnected()
        while not self._out.empty():
            self._out.get_nowait()
        for schema in self._schemas.values():
            self._say(agent_pb2.AttachRequest(schema=schema))
        self._wake_reports.set()
        self._wake_ticks.set()
        self.detached.clear()
        self.attached.set()
        log.info("attached to %s", self._address)

    async def _read(self, call: Any, silence_s: float) -> None:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message = await call.read()
            except TimeoutError:
                raise UnreachableError(
                    f"the host at {self._address} is silent", why=f"nothing came for {silence_s:g} s"
                ) from None
            if not isinstance(message, agent_pb2.AttachResponse):
                return
            self._note_time(message)
            if message.WhichOneof("body") == "ack":
                if message.ack.report_seq:
                    await asyncio.to_thread(self._outbox.delete, message.ack.report_seq)
                if message.ack.tick_seq:
                    self._ring.acknowledge(message.ack.tick_seq)
            else:
                self._receive(message)

    def _note_time(self, message: agent_pb2.AttachResponse) -> None:
        """Keep the host's time, to be sent back: from that it knows how far our clocks are apart."""
        told = message.ack.time_unix_us or message.heartbeat.time_unix_us
        if told:
            self._host_us, self._host_heard_ns = told, time.monotonic_ns()

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._out.get())

    async def _send_reports(self) -> None:
        sent = self._acked
        while True:
            await self._wake_reports.wait()
            self._wake_reports.clear()
            while reports := await asyncio.to_thread(self._outbox.after, sent):
                for report in reports:
                    await self._out.put(agent_pb2.AttachRequest(report=report))
                    sent = report.seq

    async def _send_ticks(self) -> None:
        while True:
            await self._wake_ticks.wait()
            self._wake_ticks.clear()
            while (tick := self._ring.next()) is not None:
                await self._out.put(agent_pb2.AttachRequest(tick=tick))

    async def _beat(self, interval: float) -> None:
        due = 0.0
        facts = await asyncio.to_thread(self.facts)  # Hello carried these
        while True:
            told, self._told = self._told, {}
            running = self._running()
            now = time.monotonic()
            if now >= due:
                due = now + interval
                held = time.monotonic_ns() - self._host_heard_ns
                beat = agent_pb2.Heartbeat(
                    time_unix_us=time.time_ns() // 1000, echo_unix_us=self._host_us, held_us=held // 1000
                )
                await self._out.put(agent_pb2.AttachRequest(heartbeat=beat))
                fresh = await asyncio.to_thread(self.facts)
                progress = agent_pb2.Progress(running=running, facts=fresh if fresh != facts else None)
                facts = fresh
                if running or progress.HasField("facts"):
                    await self._out.put(agent_pb2.AttachRequest(progress=progress))
            if told:
                progress = agent_pb2.Progress()
                for report in told.values():
                    match report:
                        case agent_pb2.ServiceReport():
                            progress.services.append(report)
                        case agent_pb2.PlacementReport():
                            progress.placements.append(report)
                        case agent_pb2.LocationReport():
                            progress.locations.append(report)
                        case agent_pb2.DeviceProcesses():
                            progress.processes.append(report)
                await self._out.put(agent_pb2.AttachRequest(progress=progress))
            await asyncio.sleep(PROGRESS_S)

    async def goodbye(self, reason: str) -> None:
        """Say that this agent leaves on purpose; returns soon in any case. The stream's end is then no failure."""
        self._leaving = True
        if not self.attached.is_set():
            return
        self._say(agent_pb2.AttachRequest(goodbye=agent_pb2.Goodbye(reason=reason)))
        try:
            async with asyncio.timeout(2.0):
                await self.detached.wait()
        except TimeoutError:
            pass


async def _raise_status(call: Any, address: str) -> None:
    """Raise the error a finished call ended with, if it did."""
    try:
        async with asyncio.timeout(1.0):
            code = await call.code()
            if code is grpc.StatusCode.OK:
                return
            error = grpc.aio.AioRpcError(
                code, await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
            )
    except TimeoutError:
        return
    _raise(error, address)


def _raise(error: grpc.aio.AioRpcError, address: str) -> NoReturn:
    """Raise what a failed stream means: what the host said, or that it is gone."""
    said = any(key == net.ERROR_KEY for key, _ in error.trailing_metadata() or ())
    broken = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
    if not said and error.code() in broken:
        raise net.unreachable(address, "the stream broke") from None
    net.raise_error(error, address)
