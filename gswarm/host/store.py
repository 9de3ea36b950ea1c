"""The host's one durable state: operations run in a writer thread, are committed in groups, then published."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gswarm.errors import GswarmError, RefusedError, UnreachableError
from gswarm.host.database import Database, DiskFullError, Rows
from gswarm.host.state import Batch, Changed, Entry, State
from gswarm.kinds import BY_KIND, BY_MESSAGE, M, key_of, wire_of
from gswarm.v1 import common_pb2

R = TypeVar("R")
Operation = Callable[["Transaction"], R]
GROUP_LIMIT = 512
WATCHED_EVENTS = 1_000
REPLY_SWEEP = 10_000
ROOM_S = 2.0
"""How often it is looked whether a full disk has room again."""
log = logging.getLogger("gswarm.host")

__all__ = ["Batch", "Changed", "Entry", "Operation", "State", "Store", "Transaction"]


@dataclass(slots=True)
class _Edits:
    """What one operation (or the group so far) has changed. A None message is a deletion."""

    objects: dict[tuple[int, str], Message | None] = field(default_factory=dict)
    revisions: dict[tuple[int, str], int] = field(default_factory=dict)
    archived: dict[tuple[int, str], tuple[int, str, str, bytes]] = field(default_factory=dict)
    small: dict[str, bytes | None] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def absorb(self, other: _Edits) -> None:
        self.objects.update(other.objects)
        self.revisions.update(other.revisions)
        self.counters.update(other.counters)
        if other.archived:
            self.archived.update(other.archived)
        if other.small:
            self.small.update(other.small)


class Transaction:
    """One operation's view: the committed state plus what its group has changed before it.

    Use it only inside the operation. What `get` and `list` give is shared: change a copy from `edit`, then `put` it.
    """

    def __init__(self, writer: _Writer, revision: int, now: datetime, actor: str, cause: str) -> None:
        self._writer = writer
        self._edits = _Edits()
        self.revision = revision
        """The revision this operation will have once committed."""
        self.now = now
        self.stamp = Timestamp(seconds=int(now.timestamp()), nanos=now.microsecond * 1000)
        """`now` as messages take it: `task.created_at.CopyFrom(tx.stamp)`."""
        self.actor = actor
        self.cause = cause

    def get(self, cls: type[M], key: str) -> M | None:
        """The object or None."""
        return self._find(BY_MESSAGE[cls].kind, key)  # type: ignore[return-value]

    def _find(self, kind: int, key: str) -> Message | None:
        slot = (kind, key)
        for edits in (self._edits, self._writer.group):
            if slot in edits.objects:
                return edits.objects[slot]
        return self._writer.base[kind].get(key)

    def edit(self, cls: type[M], key: str) -> M | None:
        """A private copy to change and `put`, or None."""
        found = self.get(cls, key)
        if found is None:
            return None
        copy = cls()
        copy.CopyFrom(found)
        return copy

    def list(self, cls: type[M]) -> Iterator[M]:
        """All objects of a kind; may be changed while iterating."""
        kind = BY_MESSAGE[cls].kind
        merged: dict[str, Message | None] = dict(self._writer.base[kind])
        for edits in (self._writer.group, self._edits):
            merged.update({key: message for (k, key), message in edits.objects.items() if k == kind})
        return (message for message in merged.values() if message is not None)  # type: ignore[misc]

    def put(self, message: Message) -> None:
        """Insert or replace an object under its own key. The message must not be changed afterwards."""
        self._edits.objects[BY_MESSAGE[type(message)].kind, key_of(message)] = message

    def delete(self, cls: type[Message], key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        kind = BY_MESSAGE[cls].kind
        if self._find(kind, key) is not None:
            self._edits.objects[kind, key] = None

    def archive(self, cls: type[Message], key: str) -> None:
        """Take an object with a decimal key out of the watched state; `Store.archived` still finds it."""
        kind = BY_MESSAGE[cls].kind
        message = self._find(kind, key)
        if message is None:
            return
        parent = str(getattr(message, "workflow_id", ""))
        self._edits.archived[kind, key] = (int(key), key, parent, message.SerializeToString())
        self._edits.objects[kind, key] = None

    def next_id(self, name: str) -> int:
        """The next number of a durable counter, from 1."""
        mine, group, kept = self._edits.counters, self._writer.group.counters, self._writer.counters
        number = (mine.get(name) or group.get(name) or kept.get(name, 0)) + 1
        mine[name] = number
        return number

    def get_value(self, name: str) -> bytes | None:
        """A small durable value that no one watches."""
        for edits in (self._edits, self._writer.group):
            if name in edits.small:
                return edits.small[name]
        return self._writer.small.get(name)

    def put_value(self, name: str, value: bytes | None) -> None:
        """Set a small value, or remove it with None."""
        self._edits.small[name] = value

    def list_values(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Small values by name prefix, sorted."""
        merged: dict[str, bytes | None] = {**self._writer.small, **self._writer.group.small, **self._edits.small}
        return ((k, v) for k, v in sorted(merged.items()) if v is not None and k.startswith(prefix))

    def event(
        self,
        type: str,
        message: str,
        *,
        subject: Message | None = None,
        severity: common_pb2.Severity.ValueType = common_pb2.SEVERITY_INFO,
        cause: str | None = None,
    ) -> str:
        """Append to the event log in this very transaction; the entry's id."""
        number = self.next_id("event")
        event = common_pb2.Event(
            id=str(number),
            type=type,
            severity=severity,
            actor=self.actor,
            cause=self.cause if cause is None else cause,
            message=message,
            time=self.stamp,
        )
        if subject is not None:
            event.subject_kind = BY_MESSAGE[subject.__class__].kind
            event.subject = key_of(subject)
        self.put(event)
        if number > WATCHED_EVENTS:
            self._edits.objects[common_pb2.KIND_EVENT, str(number - WATCHED_EVENTS)] = None
        return event.id


@dataclass(slots=True)
class _Job(Generic[R]):
    operation: Operation[R]
    actor: str
    meta: common_pb2.RequestMeta | None
    method: str
    digest: bytes
    reply_type: type[Message] | None
    durable: bool
    future: asyncio.Future[R]


@dataclass(slots=True)
class _Outcome:
    job: _Job[object]
    result: object = None
    error: BaseException | None = None
    batch: Batch | None = None


class _Writer(threading.Thread):
    """Owns the database and the committed state; the loop sees changes only through `_publish`."""

    def __init__(
        self, database: Database, loop: asyncio.AbstractEventLoop, publish: Callable[[list[_Outcome]], None]
    ) -> None:
        super().__init__(name="store-writer", daemon=True)
        self.database = database
        self.jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self.base: dict[int, dict[str, Message]] = {kind: {} for kind in BY_KIND}
        self.revisions: dict[tuple[int, str], int] = {}
        self.small = dict(database.small())
        self.counters = dict(database.counters())
        self.group = _Edits()
        self._number = 0
        self._replies: dict[tuple[str, str], tuple[str, bytes, bytes]] = {}
        self._replied = 0
        self._loop, self._publish = loop, publish

    def run(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            jobs, stop = [job], False
            while len(jobs) < GROUP_LIMIT:
                try:
                    more = self.jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    stop = True
                    break
                jobs.append(more)
            outcomes = self._run_group(jobs)
            self._loop.call_soon_threadsafe(self._publish, outcomes)
            if stop:
                return

    def _run_group(self, jobs: list[_Job[object]]) -> list[_Outcome]:
        self.group, rows = _Edits(), Rows()
        self._replies.clear()
        outcomes = [self._run_one(job, rows) for job in jobs if not job.future.cancelled()]
        changed = any(o.batch or o.error is None for o in outcomes)
        durable = any(o.job.durable and o.error is None for o in outcomes) and changed
        try:
            if durable:
                self.database.write(rows)
                self._replied += len(rows.replies)
                if self._replied > REPLY_SWEEP:
                    self._replied = 0
                    self.database.forget_replies()
        except GswarmError as error:
            # Whoever saw an uncommitted change of this group must not keep it: all of them fail together.
            return [_Outcome(o.job, error=o.error or error) for o in outcomes]
        self._keep(self.group)
        return outcomes

    def _run_one(self, job: _Job[object], rows: Rows) -> _Outcome:
        meta = job.meta
        request_id = meta.request_id if meta else ""
        try:
            if request_id and (stored := self._stored(job, request_id)) is not None:
                return _Outcome(job, result=stored)
            revision = (self.database.epoch << 32) | (self._number + 1)
            now = datetime.now(UTC)
            tx = Transaction(self, revision, now, job.actor, request_id)
            result = job.operation(tx)
            if meta and meta.expected_revision:
                self._check_revision(tx._edits, meta.expected_revision)
            if meta and meta.dry_run:
                return _Outcome(job, result=result)
            batch = self._accept(tx._edits, revision, now, job, rows)
            if request_id and isinstance(result, Message):
                reply = result.SerializeToString()
                self._replies[job.actor, request_id] = (job.method, job.digest, reply)
                rows.replies.append((job.actor, request_id, job.method, job.digest, reply, int(now.timestamp())))
            return _Outcome(job, result=result, batch=batch)
        except Exception as error:  # an operation's failure is its caller's, never the writer's
            return _Outcome(job, error=error)

    def _stored(self, job: _Job[object], request_id: str) -> Message | None:
        found = self._replies.get((job.actor, request_id))
        if found is None and (stored := self.database.reply(job.actor, request_id)):
            found = (stored.method, stored.digest, stored.reply)
        if found is None:
            return None
        method, digest, reply = found
        if method != job.method or digest != job.digest or job.reply_type is None:
            raise RefusedError(
                f"request id {request_id} was used for another request",
                why=f"it was a {method}",
                next="use a new id",
                field="request_id",
            )
        return job.reply_type.FromString(reply)

    def _check_revision(self, edits: _Edits, expected: int) -> None:
        for kind, key in edits.objects:
            known = self.group.revisions.get((kind, key), self.revisions.get((kind, key), 0))
            if known > expected and kind != common_pb2.KIND_EVENT:
                raise RefusedError(
                    f"{BY_KIND[kind].slot} {key} has changed since revision {expected}",
                    next="look at it again, then decide",
                    field="expected_revision",
                )

    def _accept(self, edits: _Edits, revision: int, now: datetime, job: _Job[object], rows: Rows) -> Batch | None:
        changes, group, base, objects, durable = [], self.group.objects, self.base, rows.objects, job.durable
        for slot, message in edits.objects.items():
            kind, key = slot
            old = group[slot] if slot in group else base[kind].get(key)
            if message is not None:
                body = message.SerializeToString()
                if durable and kind == common_pb2.KIND_EVENT:
                    rows.archived.append((kind, int(key), key, "", body))
                elif durable:
                    objects[slot] = (revision, body)
                changes.append(Changed(kind, key, old, message, wire_of(kind, key, revision, body)))
            elif old is not None:
                if durable and kind != common_pb2.KIND_EVENT:
                    objects[slot] = None
                changes.append(Changed(kind, key, old, None, wire_of(kind, key, revision, None)))
        edits.revisions = dict.fromkeys(edits.objects, revision)
        if job.durable:
            rows.archived += [
                (kind, number, key, parent, body) for (kind, _), (number, key, parent, body) in edits.archived.items()
            ]
            rows.small.update(edits.small)
            rows.counters.update(edits.counters)
        self.group.absorb(edits)
        if not changes and not job.durable:
            return None
        # A command that found nothing to change has told its revision all the same, and someone may wait for it.
        self._number += 1
        return Batch(revision, now, job.actor, job.meta.request_id if job.meta else "", tuple(changes))

    def _keep(self, edits: _Edits) -> None:
        for (kind, key), message in edits.objects.items():
            if message is None:
                self.base[kind].pop(key, None)
                self.revisions.pop((kind, key), None)
            else:
                self.base[kind][key] = message
                self.revisions[kind, key] = edits.revisions[kind, key]
        for name, value in edits.small.items():
            if value is None:
                self.small.pop(name, None)
            else:
                self.small[name] = value
        self.counters.update(edits.counters)
        self.group = _Edits()


class Store:
    """The state, its writer, and those who follow it. An async context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._subscribers: list[Callable[[Batch], None]] = []
        self._closed = True
        self.state = State()

    async def __aenter__(self) -> Store:
        """Open and load; raises what Database raises."""
        loop = asyncio.get_running_loop()
        database = await asyncio.to_thread(Database, self._directory)
        self._writer = _Writer(database, loop, self._publish)
        await asyncio.to_thread(self._load)
        self.state.revision = database.epoch << 32
        self._writer.start()
        self._closed = False
        return self

    def _load(self) -> None:
        writer = self._writer
        events = writer.database.archived(common_pb2.KIND_EVENT, 0, WATCHED_EVENTS, "")
        for kind, key, revision, body in (*writer.database.objects(), *_revived(events)):
            info = BY_KIND.get(kind)
            if info is None:
                continue
            message = info.message.FromString(body)
            writer.base[kind][key] = message
            writer.revisions[kind, key] = revision
            self.state.load(kind, key, Entry(message, revision, wire_of(kind, key, revision, body)))

    async def __aexit__(self, *exc: object) -> None:
        """Finish what was asked, then close."""
        self._closed = True
        self._writer.jobs.put(None)
        await asyncio.to_thread(self._writer.join)
        self._writer.database.close()

    @property
    def epoch(self) -> int:
        """The number of this host start."""
        return self._writer.database.epoch

    async def apply(
        self,
        operation: Operation[R],
        *,
        actor: str,
        meta: common_pb2.RequestMeta | None = None,
        method: str = "",
        request: Message | None = None,
        durable: bool = True,
    ) -> R:
        """Run an operation; returns its reply once the change is on disk and published.

        With a request id the reply (a protobuf message of the method's response type) is stored beside the change,
        and a retry is answered instead of repeated. `durable=False` keeps order and publication but writes nothing:
        for progress and presence, which agents tell again after a restart.
        Raises whatever the operation raised, RefusedError on a reused id or a moved revision, ExhaustedError on a
        full disk.
        """
        if self._closed:
            raise UnreachableError("the host is stopping", next="try again in a moment")
        digest, reply_type = b"", None
        if meta is not None and meta.request_id and request is not None:
            digest, reply_type = _digest(request), _reply_type(request)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        job = _Job(operation, actor, meta, method, digest, reply_type, durable, future)
        self._writer.jobs.put(job)  # type: ignore[arg-type]
        return await future

    async def insist(self, operation: Operation[R], *, actor: str = "host", method: str = "") -> R:
        """Run a durable operation that nobody else would try again; while the disk is full it waits for room.

        It may run several times: only the last run counts. Raises whatever the operation raises.
        """
        while True:
            try:
                return await self.apply(operation, actor=actor, method=method)
            except DiskFullError as error:
                log.warning("%s waits for room: %s", method, error)
            await asyncio.sleep(ROOM_S)

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        """Call `callback` on the loop with every batch, in order; the returned function ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def archived(self, cls: type[M], *, before: int = 0, limit: int = 200, parent: str = "") -> list[M]:
        """Objects that left the watched state, newest first."""

        def read(_: Transaction) -> list[M]:
            rows = self._writer.database.archived(BY_MESSAGE[cls].kind, before, limit, parent)
            return [cls.FromString(body) for body in rows]

        return await self.apply(read, actor="host", durable=False)

    def _publish(self, outcomes: list[_Outcome]) -> None:
        for outcome in outcomes:
            if outcome.batch is not None:
                self.state.publish(outcome.batch)
                for callback in tuple(self._subscribers):
                    callback(outcome.batch)
            future = outcome.job.future
            if future.done():
                continue
            if outcome.error is not None:
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome.result)


def _revived(events: list[bytes]) -> Iterator[tuple[int, str, int, bytes]]:
    for body in reversed(events):
        yield common_pb2.KIND_EVENT, common_pb2.Event.FromString(body).id, 0, body


def _digest(request: Message) -> bytes:
    """Identity of a request without its meta, which a retry may change."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("meta")
    return hashlib.blake2b(copy.SerializeToString(deterministic=True), digest_size=16).digest()


def _reply_type(request: Message) -> type[Message] | None:
    from google.protobuf import message_factory

    name = request.DESCRIPTOR.full_name
    if not name.endswith("Request"):
        return None
    descriptor: Any = request.DESCRIPTOR.file.pool.FindMessageTypeByName(name.removesuffix("Request") + "Response")
    return message_factory.GetMessageClass(descriptor)
