"""What becomes of sessions on the host: recorders that follow the durable objects, ends that come by themselves, sealing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gswarm.errors import ExhaustedError
from gswarm.profiler import retention
from gswarm.profiler.manifest import MANIFEST
from gswarm.profiler.recorder import Recorder, Told, manifest_of
from gswarm.v1 import common_pb2, profiler_pb2, queue_pb2
from gswarm.v1.profiler_pb2 import Session

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.state import Batch
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
RECORDING = profiler_pb2.SESSION_PHASE_RECORDING
PAUSED = profiler_pb2.SESSION_PHASE_PAUSED
STOPPED = profiler_pb2.SESSION_PHASE_STOPPED
SEALED = profiler_pb2.SESSION_PHASE_SEALED
ACTIVE = (RECORDING, PAUSED)
TASK_ENDED = (queue_pb2.TASK_PHASE_DONE, queue_pb2.TASK_PHASE_FAILED, queue_pb2.TASK_PHASE_CANCELLED)
LOOK_S = 10.0
"""How often the clock is looked at: it may be set, and a session's end is a time of day."""
SEAL_AGAIN_S = 60.0
RETENTION_EVERY_S = 60.0


class Sessions:
    """Follows the durable objects, so that a restarted host goes on recording and seals what an earlier one left."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store = host, host.store
        self.root = host.state_dir / "recordings"
        self._changed = asyncio.Event()
        self._recorders: dict[str, tuple[Recorder, asyncio.Task[None]]] = {}
        self.sealing = asyncio.Lock()
        """One child at a time: it takes a core and some memory."""
        self._sealed_bytes: dict[str, int] = {}
        self._being_sealed: set[str] = set()
        self._awaited: frozenset[str] = frozenset()
        """Tasks that sessions stop with."""
        self._describing = asyncio.Lock()
        self._retained_at = 0.0
        host.nodes.keeps_ticks = self._keeps

    async def remove(self, name: str) -> None:
        """Delete the files of a session whose deletion is decided."""
        async with self.sealing:
            await retention.remove(self.store, self.root, name)

    async def describe(self, name: str) -> None:
        """Bring the manifest beside a session's files up to date. Raises OSError."""
        async with self._describing:  # one after the other: the last to write has read the newest
            session, directory = self.store.state.get(Session, name), self.root / name
            if session is not None and await asyncio.to_thread(directory.is_dir):
                await asyncio.to_thread(manifest_of(session).write, directory)

    def _keeps(self, node: str) -> bool:
        return any(recorder.wants(node) for recorder, _ in self._recorders.values())

    async def run(self) -> None:
        """Start and end recorders as sessions come and go, until cancelled."""
        unsubscribe = self.store.subscribe(self._on_batch)
        await retention.tidy(self.store, self.root)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    await self._end_what_is_over()
                    await self._reconcile(group)
                    await self._retain()
                    try:
                        async with asyncio.timeout(self._until_next_s()):
                            await self._changed.wait()
                    except TimeoutError:
                        pass
        finally:
            unsubscribe()

    def _active(self) -> Iterator[Session]:
        return (session for session in self.store.state.list(Session) if session.phase in ACTIVE)

    def _on_batch(self, batch: Batch) -> None:
        for change in batch.changes:
            message = change.new or change.old
            if isinstance(message, Session) or (isinstance(message, queue_pb2.Task) and message.id in self._awaited):
                self._changed.set()

    def _until_next_s(self) -> float:
        now = datetime.now(UTC)
        ends = [s.stops_at.ToDatetime(UTC) for s in self._active() if s.HasField("stops_at")]
        return min([LOOK_S, *(max(0.01, (end - now).total_seconds()) for end in ends)])

    async def _end_what_is_over(self) -> None:
        now = datetime.now(UTC)
        awaited: set[str] = set()
        for session in list(self._active()):
            why = ""
            if session.HasField("stops_at") and session.stops_at.ToDatetime(UTC) <= now:
                why = "its time is over"
            if session.until_task:
                task = self.store.state.get(queue_pb2.Task, session.until_task)
                awaited.add(session.until_task)
                if task is None or task.phase in TASK_ENDED:
                    why = f"task {session.until_task} has ended"
            if why:
                await self.store.insist(stopping(session.name, why), method="session-end")
        self._awaited = frozenset(awaited)

    async def _reconcile(self, group: asyncio.TaskGroup) -> None:
        for session in list(self.store.state.list(Session)):
            name = session.name
            if session.phase in ACTIVE and name not in self._recorders:
                recorder = self._recorder(session, group)
                task = group.create_task(recorder.run(), name=f"record-{name}")
                self._recorders[name] = (recorder, task)
            elif session.phase not in ACTIVE and name in self._recorders:
                _, task = self._recorders.pop(name)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self._seal_later(group, name)
            elif session.phase == STOPPED and name not in self._being_sealed:
                if not await asyncio.to_thread((self.root / name / MANIFEST).is_file):
                    with contextlib.suppress(OSError):
                        await self._recorder(session, group).moment()
                self._seal_later(group, name)

    def _recorder(self, session: Session, group: asyncio.TaskGroup) -> Recorder:
        name = session.name
        return Recorder(
            self.root / name,
            session,
            self.store,
            self.host.hub,
            self.host.nodes,
            self._teller(name, group),
            lambda number: self._seal_later(group, name, number),
            self.host.status,
        )

    def _teller(self, name: str, group: asyncio.TaskGroup) -> Callable[[Told], None]:
        """Puts a recorder's counts into the session; written to disk only when it pauses or goes on."""

        def told(now: Told) -> None:
            size = self._sealed_bytes.get(name, 0) + now.journal_bytes
            wanted = PAUSED if now.problem else RECORDING

            def operation(tx: Transaction) -> None:
                session = tx.edit(Session, name)
                if session is None or session.phase not in ACTIVE:
                    return
                if (session.ticks, session.size_bytes, session.detail) == (now.ticks, size, now.problem):
                    return
                session.ticks, session.events, session.size_bytes = now.ticks, now.events, size
                session.detail = now.problem
                if session.phase != wanted:
                    session.phase = wanted
                    if now.problem:
                        text = f"session {name} pauses: {now.problem}"
                        tx.event("session.paused", text, subject=session, severity=common_pb2.SEVERITY_WARNING)
                    else:
                        tx.event("session.resumed", f"session {name} goes on", subject=session)
                tx.put(session)

            async def tell() -> None:
                known = self.store.state.get(Session, name)
                durable = known is not None and known.phase in ACTIVE and known.phase != wanted
                try:
                    await self.store.apply(operation, actor="host", durable=durable)
                except ExhaustedError:
                    # The disk that is full for the recording is full for us too.
                    await self.store.apply(operation, actor="host", durable=False)

            group.create_task(tell(), name="session-counts")

        return told

    def _seal_later(self, group: asyncio.TaskGroup, name: str, number: int | None = None) -> None:
        if number is None:
            self._being_sealed.add(name)
        group.create_task(self._seal(name, number), name=f"seal-{name}")

    async def _seal(self, name: str, number: int | None) -> None:
        """Seal a full journal, or all of a session that has ended; when it fails, it is tried again later."""
        async with self.sealing:
            try:
                if number is None:
                    await self.describe(name)  # when it stopped
                found, problem = await seal_in_child(self.root / name, number)
            except OSError as error:
                found, problem = {}, f"sealing failed: {(error.strerror or str(error)).lower()}"
        self._sealed_bytes[name] = found.get("size_bytes", 0)
        if number is not None:
            if problem:
                log.warning("session %s: %s", name, problem)
            return

        def operation(tx: Transaction) -> None:
            session = tx.edit(Session, name)
            if session is None or session.phase in ACTIVE:
                return
            session.detail = problem
            if not problem:
                session.ticks, session.events = found["ticks"], found["changes"]
                session.size_bytes, session.phase = found["size_bytes"], SEALED
                session.detail = "; ".join(found["lost"])
            tx.put(session)

        try:
            await self.store.insist(operation, method="seal")
            if problem:
                await asyncio.sleep(SEAL_AGAIN_S)
        finally:
            self._being_sealed.discard(name)
            self._sealed_bytes.pop(name, None)
            self._changed.set()

    async def _retain(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._retained_at:
            self._retained_at = now + RETENTION_EVERY_S
            await retention.expire(self.store, self.root, self.host.config.profiler)


def stopping(name: str, why: str) -> Callable[[Transaction], None]:
    """An operation that ends a session which records."""

    def operation(tx: Transaction) -> None:
        session = tx.edit(Session, name)
        if session is not None and session.phase in ACTIVE:
            stop(tx, session, why)

    return operation


def stop(tx: Transaction, session: Session, why: str = "") -> None:
    """End a session that records."""
    session.phase, session.detail = STOPPED, ""
    session.stopped_at.FromDatetime(tx.now)
    tx.put(session)
    tx.event("session.stopped", f"session {session.name} stopped{f': {why}' if why else ''}", subject=session)


async def seal_in_child(directory: Path, number: int | None = None) -> tuple[dict[str, Any], str]:
    """Run `gswarm.profiler.seal`: what it told, and what went wrong. The child ends with us."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gswarm.profiler.seal",
        str(directory),
        *([] if number is None else [str(number)]),
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
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        return {}, f"sealing failed: {lines[-1] if lines else process.returncode}"
    return json.loads(told), ""
