"""The host's side of the profiler: sessions as durable objects, one recorder each, sealed by a child process."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from gswarm.errors import InvalidError, NotFoundError, RefusedError
from gswarm.host.auth import caller
from gswarm.names import check_name, near
from gswarm.profiler.recorder import Recorder, Told
from gswarm.v1 import cluster_pb2, profiler_pb2, profiler_pb2_grpc
from gswarm.v1.profiler_pb2 import Session

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.store import Batch, Transaction

log = logging.getLogger("gswarm.host")
Context = grpc.aio.ServicerContext[Any, Any]
RECORDING = profiler_pb2.SESSION_PHASE_RECORDING
PAUSED = profiler_pb2.SESSION_PHASE_PAUSED
ACTIVE = (RECORDING, PAUSED)
CHUNK = 1 << 20
FASTEST_S, SLOWEST_S = 0.1, 60.0


class ProfilerService(profiler_pb2_grpc.ProfilerServicer):
    """Sessions; recorders follow the durable objects, so that a restarted host goes on recording."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store = host, host.store
        self.root = host.state_dir / "recordings"
        self._changed = asyncio.Event()
        self._recorders: dict[str, tuple[Recorder, asyncio.Task[None]]] = {}
        host.nodes.keeps_ticks = self._keeps

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        profiler_pb2_grpc.add_ProfilerServicer_to_server(self, server)

    def _keeps(self, node: str) -> bool:
        return any(recorder.wants(node) for recorder, _ in self._recorders.values())

    async def run(self) -> None:
        """Start and end recorders as sessions come and go; seal what an earlier host left."""
        unsubscribe = self.store.subscribe(self._on_batch)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    await self._reconcile(group)
                    await self._changed.wait()
        finally:
            unsubscribe()

    def _on_batch(self, batch: Batch) -> None:
        if any(isinstance(change.new or change.old, Session) for change in batch.changes):
            self._changed.set()

    async def _reconcile(self, group: asyncio.TaskGroup) -> None:
        for session in list(self.store.state.list(Session)):
            running = session.name in self._recorders
            if session.phase in ACTIVE and not running:
                recorder = Recorder(
                    self.root / session.name,
                    session,
                    self.store,
                    self.host.hub,
                    self.host.nodes,
                    self._teller(session.name, group),
                )
                task = group.create_task(recorder.run(), name=f"record-{session.name}")
                self._recorders[session.name] = (recorder, task)
            elif session.phase not in ACTIVE and running:
                _, task = self._recorders.pop(session.name)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                group.create_task(self._seal(session.name), name=f"seal-{session.name}")
            elif session.phase == profiler_pb2.SESSION_PHASE_STOPPED and not running and not session.detail:
                group.create_task(self._seal(session.name), name=f"seal-{session.name}")

    def _teller(self, name: str, group: asyncio.TaskGroup) -> Any:
        """Puts a recorder's counts into the session, without writing each of them to disk."""

        def told(now: Told) -> None:
            def operation(tx: Transaction) -> None:
                session = tx.edit(Session, name)
                if session is None or session.phase not in ACTIVE:
                    return
                if (session.ticks, session.size_bytes, session.detail) == (now.ticks, now.journal_bytes, now.problem):
                    return
                session.ticks, session.events, session.size_bytes = now.ticks, now.events, now.journal_bytes
                session.detail, session.phase = now.problem, PAUSED if now.problem else RECORDING
                tx.put(session)

            group.create_task(self.store.apply(operation, actor="host", durable=False), name="session-counts")

        return told

    async def _seal(self, name: str) -> None:
        directory = self.root / name
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gswarm.profiler.seal",
            str(directory),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            told, errors = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        lines = errors.decode(errors="replace").strip().splitlines()
        problem = f"sealing failed: {lines[-1] if lines else process.returncode}" if process.returncode else ""

        def operation(tx: Transaction) -> None:
            session = tx.edit(Session, name)
            if session is None or session.phase in ACTIVE:
                return
            session.detail = problem
            if not problem:
                body = json.loads(told)
                session.ticks, session.events, session.size_bytes = body["ticks"], body["changes"], body["size_bytes"]
                session.phase = profiler_pb2.SESSION_PHASE_SEALED
            tx.put(session)

        await self.store.apply(operation, actor="host", method="seal")

    async def StartSession(
        self, request: profiler_pb2.StartSessionRequest, context: Context
    ) -> profiler_pb2.StartSessionResponse:
        """A new recording."""
        check_name(request.name, "session name")
        interval = request.interval_s or 1.0
        if not FASTEST_S <= interval <= SLOWEST_S:
            raise InvalidError(f"an interval of {interval:g} s cannot be", next="from 0.1 to 60 s", field="interval")
        if (self.root / request.name).exists() and self.store.state.get(Session, request.name) is None:
            raise RefusedError(
                f"there is a recording named {request.name} on disk", next="choose another name", field="name"
            )

        def operation(tx: Transaction) -> profiler_pb2.StartSessionResponse:
            if (known := tx.get(Session, request.name)) is not None:
                state = "records already" if known.phase in ACTIVE else "exists"
                raise RefusedError(
                    f"session {request.name} {state}", next="choose another name, or delete it first", field="name"
                )
            names = [n.name for n in tx.list(cluster_pb2.Node)]
            for node in request.nodes:
                if node not in names:
                    raise NotFoundError(f"there is no node {node}", next=near(node, names), field="nodes")
            session = Session(
                name=request.name,
                nodes=request.nodes,
                interval_s=interval,
                phase=RECORDING,
                path=str(self.root / request.name),
                actor=tx.actor,
                generation=1,
            )
            session.started_at.FromDatetime(tx.now)
            tx.put(session)
            tx.event("session.started", f"session {request.name} records", subject=session)
            return profiler_pb2.StartSessionResponse(revision=tx.revision, session=session)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.StartSession", request=request
        )

    async def StopSession(
        self, request: profiler_pb2.StopSessionRequest, context: Context
    ) -> profiler_pb2.StopSessionResponse:
        """End a recording; it is sealed in the background."""

        def operation(tx: Transaction) -> profiler_pb2.StopSessionResponse:
            session = _session(tx, request.name)
            if session.phase in ACTIVE:
                session.phase, session.detail = profiler_pb2.SESSION_PHASE_STOPPED, ""
                session.stopped_at.FromDatetime(tx.now)
                tx.put(session)
                tx.event("session.stopped", f"session {request.name} stopped", subject=session)
            return profiler_pb2.StopSessionResponse(revision=tx.revision, session=session)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.StopSession", request=request
        )

    async def DeleteSession(
        self, request: profiler_pb2.DeleteSessionRequest, context: Context
    ) -> profiler_pb2.DeleteSessionResponse:
        """Delete a stopped recording and its files."""

        def operation(tx: Transaction) -> profiler_pb2.DeleteSessionResponse:
            session = _session(tx, request.name)
            if session.phase in ACTIVE:
                raise RefusedError(f"session {request.name} records", next=f"gswarm profiler stop {request.name}")
            tx.delete(Session, request.name)
            tx.event("session.deleted", f"session {request.name} deleted", subject=session)
            return profiler_pb2.DeleteSessionResponse(revision=tx.revision)

        response = await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.DeleteSession", request=request
        )
        if not request.meta.dry_run:
            await asyncio.to_thread(shutil.rmtree, self.root / check_name(request.name, "session name"), True)
        return response

    async def Mark(self, request: profiler_pb2.MarkRequest, context: Context) -> profiler_pb2.MarkResponse:
        """A mark on every running session's time line."""
        check_name(request.text, "mark", spaces=True)

        def operation(tx: Transaction) -> profiler_pb2.MarkResponse:
            tx.event("profiler.mark", request.text)
            return profiler_pb2.MarkResponse(revision=tx.revision)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.Mark", request=request
        )

    async def ReadRecording(
        self, request: profiler_pb2.ReadRecordingRequest, context: Context
    ) -> AsyncIterator[profiler_pb2.ReadRecordingResponse]:
        """The files of a recording, also while it grows: then up to the last whole write."""
        directory = self.root / check_name(request.name, "session name")
        if self.store.state.get(Session, request.name) is None or not directory.is_dir():
            raise NotFoundError(
                f"there is no session {request.name}",
                next=near(request.name, (s.name for s in self.store.state.list(Session))),
            )
        for path in sorted(p for p in directory.iterdir() if p.is_file() and not p.name.startswith(".")):
            first = True
            with path.open("rb") as file:
                while (piece := await asyncio.to_thread(file.read, CHUNK)) or first:
                    yield profiler_pb2.ReadRecordingResponse(path=path.name if first else "", chunk=piece)
                    first = False


def _session(tx: Transaction, name: str) -> Session:
    session = tx.edit(Session, name)
    if session is None:
        raise NotFoundError(
            f"there is no session {name}", next=near(name, (s.name for s in tx.list(Session))), field="name"
        )
    return session
