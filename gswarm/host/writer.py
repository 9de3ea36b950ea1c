"""The writer's thread: runs operations in the order they came, commits them in groups, keeps the committed state."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic

from google.protobuf.message import Message

from gswarm.errors import GswarmError, RefusedError
from gswarm.host import transaction
from gswarm.host.database import Database, Rows
from gswarm.host.replies import Asked, Replies
from gswarm.host.state import Batch, Changed, Entry
from gswarm.host.transaction import Committed, Edits, Operation, R, Transaction
from gswarm.kinds import BY_KIND, wire_of
from gswarm.v1 import common_pb2

GROUP_LIMIT = 512
log = logging.getLogger("gswarm.host")


@dataclass(slots=True)
class Job(Generic[R]):
    """An operation to run, and who waits for it."""

    operation: Operation[R]
    actor: str
    meta: common_pb2.RequestMeta
    asked: Asked | None
    """None: sent without an id, so it cannot be told from another when it comes again."""
    durable: bool
    future: asyncio.Future[R]


@dataclass(slots=True)
class Outcome:
    """How a job ended: a result or an error, and what it changed."""

    job: Job[object]
    result: object = None
    error: BaseException | None = None
    batch: Batch | None = None


class Writer(threading.Thread):
    """Owns the database and the committed state; the loop learns of changes only through `publish`."""

    def __init__(
        self, database: Database, loop: asyncio.AbstractEventLoop, publish: Callable[[list[Outcome]], None]
    ) -> None:
        super().__init__(name="store-writer", daemon=True)
        self.database = database
        self.jobs: queue.SimpleQueue[Job[object] | None] = queue.SimpleQueue()
        """What is to be run; None ends the thread once all before it is done."""
        self._committed = Committed(database, dict(database.counters()))
        self._group = Edits()
        self._number = 0
        self._replies = Replies(database)
        self._loop, self._publish = loop, publish

    def load(self) -> Iterator[tuple[int, str, Entry]]:
        """Read the objects on disk, before the thread starts; kind, key and entry of each."""
        events = self.database.archived(common_pb2.KIND_EVENT, 0, transaction.WATCHED_EVENTS, "")
        for kind, key, revision, body in (*self.database.objects(), *_revived(events)):
            info = BY_KIND.get(kind)
            if info is None:
                continue
            entry = Entry(info.message.FromString(body), revision)
            self._committed.entries[kind][key] = entry
            yield kind, key, entry

    def run(self) -> None:
        """The thread: one group after the other, each of what waits by then."""
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
            try:
                outcomes = self._run_group(jobs)
            except Exception as error:  # whatever it is: those who wait are told, and those to come are served
                log.exception("a group of changes cannot be stored")
                why = f"{type(error).__name__}: {error}"
                failed = GswarmError("the host could not store the change", why=why, next="see gswarm logs host")
                outcomes = [Outcome(job, error=failed) for job in jobs]
            self._loop.call_soon_threadsafe(self._publish, outcomes)
            if stop:
                return
            # What they hold would stay until someone changes something again.
            del job, jobs, outcomes
            self._group = Edits()

    def _run_group(self, jobs: list[Job[object]]) -> list[Outcome]:
        self._group, rows = Edits(), Rows()
        self._replies.begin_group()
        outcomes = [self._run_one(job, rows) for job in jobs if not job.future.cancelled()]
        writes = any(o.job.durable and o.error is None for o in outcomes)
        if writes:
            try:
                self.database.write(rows)
            except GswarmError as error:
                # Whoever saw an uncommitted change of this group must not keep it: those that were to be written fail
                # together, and the others, which need no disk, run again as if those had never been.
                failed = [Outcome(o.job, error=o.error or error) for o in outcomes if o.job.durable]
                return failed + self._run_group([o.job for o in outcomes if not o.job.durable])
        self._committed.absorb(self._group)
        if writes:
            self._replies.written(rows)
        return outcomes

    def _run_one(self, job: Job[object], rows: Rows) -> Outcome:
        meta, asked = job.meta, job.asked
        try:
            if asked is not None and (answered := self._replies.find(asked)) is not None:
                return Outcome(job, result=answered)
            revision = (self.database.epoch << 32) | (self._number + 1)
            now = datetime.now(UTC)
            edits = Edits()
            tx = Transaction(
                self._committed,
                self._group,
                edits,
                revision=revision,
                now=now,
                actor=job.actor,
                cause=meta.request_id,
            )
            result = job.operation(tx)
            if meta.expected_revision:
                self._check_revision(edits, meta.expected_revision)
            if meta.dry_run:
                return Outcome(job, result=result)
            batch = self._accept(edits, revision, now, job, rows)
            if asked is not None and isinstance(result, Message):
                self._replies.keep(asked, result, now, rows)
            return Outcome(job, result=result, batch=batch)
        except Exception as error:  # an operation's failure is its caller's, never the writer's
            return Outcome(job, error=error)

    def _check_revision(self, edits: Edits, expected: int) -> None:
        for kind, key in edits.objects:
            known = self._known(kind, key)
            if known is not None and known.revision > expected and kind != common_pb2.KIND_EVENT:
                raise RefusedError(
                    f"{BY_KIND[kind].slot} {key} has changed since revision {expected}",
                    next="look at it again, then decide",
                    field="expected_revision",
                )

    def _known(self, kind: int, key: str) -> Entry | None:
        """An object as the last operation that changed it left it."""
        slot = (kind, key)
        return self._group.entries[slot] if slot in self._group.entries else self._committed.entries[kind].get(key)

    def _accept(self, edits: Edits, revision: int, now: datetime, job: Job[object], rows: Rows) -> Batch | None:
        """Make an operation's edits part of the group: its rows if it is durable, its changes for those who follow."""
        changes, durable = [], job.durable
        for slot, message in edits.objects.items():
            kind, key = slot
            known = self._known(kind, key)
            old, entry = known.message if known is not None else None, None
            if message is not None:
                body = message.SerializeToString()
                if durable and kind == common_pb2.KIND_EVENT:
                    rows.archived.append((kind, int(key), key, "", body))
                elif durable:
                    rows.objects[slot] = (revision, body)
                entry = Entry(message, revision)
                changes.append(Changed(kind, key, old, entry, wire_of(kind, key, revision, body)))
            elif old is not None:
                if durable and kind != common_pb2.KIND_EVENT:
                    rows.objects[slot] = None
                changes.append(Changed(kind, key, old, None, wire_of(kind, key, revision, None)))
            edits.entries[slot] = entry
        if durable:
            rows.archived += [
                (kind, number, key, parent, body) for (kind, _), (number, key, parent, body) in edits.archived.items()
            ]
            rows.small.update(edits.small)
            rows.counters.update(edits.counters)
        self._group.absorb(edits)
        if not changes and not durable:
            return None
        # A command that found nothing to change has told its revision all the same, and someone may wait for it.
        self._number += 1
        return Batch(revision, now, job.actor, job.meta.request_id, tuple(changes))


def _revived(events: list[bytes]) -> Iterator[tuple[int, str, int, bytes]]:
    for body in reversed(events):
        yield common_pb2.KIND_EVENT, common_pb2.Event.FromString(body).id, 0, body
