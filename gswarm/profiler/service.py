"""The host's side of the profiler: what can be asked of sessions and their recordings. `sessions.py` keeps them going."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import grpc
import grpc.aio

from gswarm.errors import InvalidError, NotFoundError, RefusedError
from gswarm.host.auth import caller
from gswarm.names import check_name, near
from gswarm.profiler import retention
from gswarm.profiler.sampling import switch
from gswarm.profiler.sessions import ACTIVE, RECORDING, TASK_ENDED, Sessions, stop
from gswarm.v1 import cluster_pb2, profiler_pb2, profiler_pb2_grpc, queue_pb2
from gswarm.v1.profiler_pb2 import Session

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.transaction import Transaction

Context = grpc.aio.ServicerContext[Any, Any]
CHUNK = 1 << 20
FASTEST_S, SLOWEST_S = 0.1, 60.0
LONGEST_S = 366 * 86400.0
TAG_LIMIT, TAG_LENGTH, MARK_LENGTH = 64, 200, 200


class ProfilerService(profiler_pb2_grpc.ProfilerServicer):
    """Sessions are durable objects; `Sessions` follows them with recorders."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store = host, host.store
        self.sessions = Sessions(host)
        self.root = self.sessions.root

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        profiler_pb2_grpc.add_ProfilerServicer_to_server(self, server)

    async def run(self) -> None:
        """Record and seal until cancelled."""
        await self.sessions.run()

    async def StartSession(
        self, request: profiler_pb2.StartSessionRequest, context: Context
    ) -> profiler_pb2.StartSessionResponse:
        """A new recording."""
        check_name(request.name, "session name")
        interval = request.interval_s or 1.0
        if not FASTEST_S <= interval <= SLOWEST_S:
            raise InvalidError(f"an interval of {interval:g} s cannot be", next="from 0.1 to 60 s", field="interval")
        if request.slowest_s and not interval < request.slowest_s <= SLOWEST_S:
            raise InvalidError(
                f"the slowest of an adaptive session cannot be {request.slowest_s:g} s",
                next=f"over its interval of {interval:g} s, up to {SLOWEST_S:g} s",
                field="slowest",
            )
        if not 0 <= request.for_s <= LONGEST_S:
            raise InvalidError(f"a session of {request.for_s:g} s cannot be", next="at most a year", field="for_")
        self._check_metrics(request.metrics)
        for key, value in request.tags.items():
            check_tag(key, value)
        if (self.root / request.name).exists() and self.store.state.get(Session, request.name) is None:
            raise RefusedError(
                f"there is a recording named {request.name} on disk", next="choose another name", field="name"
            )

        def operation(tx: Transaction) -> profiler_pb2.StartSessionResponse:
            if (known := tx.get(Session, request.name)) is not None:
                state, first = ("records already", "stop and delete") if known.phase in ACTIVE else ("exists", "delete")
                raise RefusedError(
                    f"session {request.name} {state}", next=f"choose another name, or {first} it first", field="name"
                )
            names = [n.name for n in tx.list(cluster_pb2.Node)]
            for node in request.nodes:
                if node not in names:
                    raise NotFoundError(f"there is no node {node}", next=near(node, names), field="nodes")
            if request.until_task:
                _check_task(tx, request.until_task)
            session = Session(
                name=request.name,
                nodes=request.nodes,
                metrics=sorted(set(request.metrics)),
                tags=request.tags,
                interval_s=interval,
                slowest_s=request.slowest_s,
                until_task=request.until_task,
                phase=RECORDING,
                path=str(self.root / request.name),
                actor=tx.actor,
                generation=1,
            )
            session.started_at.FromDatetime(tx.now)
            if request.for_s:
                session.stops_at.FromMicroseconds(session.started_at.ToMicroseconds() + int(request.for_s * 1e6))
            tx.put(session)
            tx.event("session.started", f"session {request.name} records", subject=session)
            return profiler_pb2.StartSessionResponse(revision=tx.revision, session=session)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.StartSession", request=request
        )

    def _check_metrics(self, wanted: Any) -> None:
        from gswarm.profiler.metrics import METRICS

        hub = self.host.hub
        known = {metric.name for metric in METRICS}
        for node in hub.nodes():
            for schema in hub.schemas(node):
                known.update(column.name for column in profiler_pb2.MetricSchema.FromString(schema).columns)
        for name in wanted:
            if name not in known:
                raise NotFoundError(f"there is no metric {name}", next=near(name, known), field="metrics")

    async def StopSession(
        self, request: profiler_pb2.StopSessionRequest, context: Context
    ) -> profiler_pb2.StopSessionResponse:
        """End a recording; it is sealed in the background."""

        def operation(tx: Transaction) -> profiler_pb2.StopSessionResponse:
            session = _session(tx, request.name)
            if session.phase in ACTIVE:
                stop(tx, session)
            return profiler_pb2.StopSessionResponse(revision=tx.revision, session=session)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.StopSession", request=request
        )

    async def TagSession(
        self, request: profiler_pb2.TagSessionRequest, context: Context
    ) -> profiler_pb2.TagSessionResponse:
        """Set and remove tags, also of a session that has ended."""
        for key, value in request.set.items():
            check_tag(key, value)

        def operation(tx: Transaction) -> profiler_pb2.TagSessionResponse:
            session = _session(tx, request.name)
            for key in request.remove:
                if key not in session.tags:
                    raise NotFoundError(
                        f"session {request.name} has no tag {key}", next=near(key, session.tags), field="remove"
                    )
                del session.tags[key]
            session.tags.update(request.set)
            if len(session.tags) > TAG_LIMIT:
                raise InvalidError(f"{len(session.tags)} tags are too many", next=f"at most {TAG_LIMIT}", field="set")
            tx.put(session)
            told = [*(f"{key}={value}" for key, value in request.set.items()), *(f"-{key}" for key in request.remove)]
            tx.event("session.tagged", f"session {request.name} tagged: {' '.join(told)}", subject=session)
            return profiler_pb2.TagSessionResponse(revision=tx.revision, session=session)

        response = await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.TagSession", request=request
        )
        if not request.meta.dry_run:
            await self.sessions.describe(request.name)
        return response

    async def DeleteSession(
        self, request: profiler_pb2.DeleteSessionRequest, context: Context
    ) -> profiler_pb2.DeleteSessionResponse:
        """Delete a stopped recording and its files."""

        def operation(tx: Transaction) -> profiler_pb2.DeleteSessionResponse:
            session = _session(tx, request.name)
            if session.phase in ACTIVE:
                raise RefusedError(f"session {request.name} records", next=f"gswarm profiler stop {request.name}")
            retention.delete(tx, session)
            return profiler_pb2.DeleteSessionResponse(revision=tx.revision)

        response = await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.DeleteSession", request=request
        )
        if not request.meta.dry_run:
            await self.sessions.remove(request.name)
        return response

    async def Mark(self, request: profiler_pb2.MarkRequest, context: Context) -> profiler_pb2.MarkResponse:
        """A mark on every running session's time line: a moment, or the begin or end of something."""
        if not (request.text.strip() and request.text.isprintable() and len(request.text) <= MARK_LENGTH):
            raise InvalidError("that cannot be a mark", why=f"1 to {MARK_LENGTH} characters on one line", field="text")
        kind = "profiler.begin" if request.begins else "profiler.end" if request.ends else "profiler.mark"

        def operation(tx: Transaction) -> profiler_pb2.MarkResponse:
            if request.ends and not request.ends.isdecimal():
                raise InvalidError(f"{request.ends!r} is no event", field="ends")
            made = tx.event(kind, request.text, cause=request.ends or None)
            return profiler_pb2.MarkResponse(revision=tx.revision, event=made)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Profiler.Mark", request=request
        )

    async def SetSampling(
        self, request: profiler_pb2.SetSamplingRequest, context: Context
    ) -> profiler_pb2.SetSamplingResponse:
        """Which slow metrics nodes sample."""
        return await self.store.apply(
            switch(request),
            actor=caller(context).name,
            meta=request.meta,
            method="Profiler.SetSampling",
            request=request,
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
        with contextlib.ExitStack() as stack:
            # Opened together, while nothing is sealed: what is then replaced or deleted can still be read.
            async with self.sessions.sealing:
                opened = await asyncio.to_thread(_open_all, directory, stack)
            for name, file in opened:
                first = True
                while (piece := await asyncio.to_thread(file.read, CHUNK)) or first:
                    yield profiler_pb2.ReadRecordingResponse(path=name if first else "", chunk=piece)
                    first = False


def _open_all(directory: Path, stack: contextlib.ExitStack) -> list[tuple[str, BinaryIO]]:
    paths = sorted(p for p in directory.iterdir() if p.is_file() and not p.name.startswith("."))
    return [(path.name, stack.enter_context(path.open("rb"))) for path in paths]


def check_tag(key: str, value: str) -> None:
    """Raises InvalidError for a tag that would not be readable on one line."""
    check_name(key, "tag")
    if len(value) > TAG_LENGTH or not value.isprintable():
        raise InvalidError(
            f"the value of tag {key} cannot be",
            why=f"at most {TAG_LENGTH} printable characters on one line",
            field="tag",
        )


def _check_task(tx: Transaction, task_id: str) -> None:
    task = tx.get(queue_pb2.Task, task_id)
    if task is None:
        raise NotFoundError(f"there is no task {task_id}", next="see gswarm queue list", field="until_task")
    if task.phase in TASK_ENDED:
        raise RefusedError(f"task {task_id} has ended already", field="until_task")


def _session(tx: Transaction, name: str) -> Session:
    session = tx.edit(Session, name)
    if session is None:
        raise NotFoundError(
            f"there is no session {name}", next=near(name, (s.name for s in tx.list(Session))), field="name"
        )
    return session
