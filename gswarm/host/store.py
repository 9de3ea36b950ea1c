"""The host's one durable state: a change is an operation, acknowledged once it is on disk, then published."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import Message

from gswarm.errors import UnreachableError
from gswarm.host.database import Database, DiskFullError
from gswarm.host.replies import asked
from gswarm.host.state import Batch, State
from gswarm.host.transaction import Operation, R, Transaction
from gswarm.host.writer import Job, Outcome, Writer
from gswarm.kinds import BY_MESSAGE, M
from gswarm.v1 import common_pb2

ROOM_S = 2.0
"""How often it is looked whether a full disk has room again."""
NO_META = common_pb2.RequestMeta()
log = logging.getLogger("gswarm.host")


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
        self._writer = Writer(database, loop, self._publish)
        await asyncio.to_thread(self._load)
        self.state.revision = database.epoch << 32
        self._writer.start()
        self._closed = False
        return self

    def _load(self) -> None:
        for kind, key, entry in self._writer.load():
            self.state.load(kind, key, entry)

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
        for progress and presence, which agents tell again after a restart. Such an operation needs no room on the
        disk; it runs a second time when those of its group that do found none.
        Raises whatever the operation raised, RefusedError on a reused id or a moved revision, ExhaustedError on a
        full disk.
        """
        if self._closed:
            raise UnreachableError("the host is stopping", next="try again in a moment")
        meta = meta if meta is not None else NO_META
        once = asked(actor, meta.request_id, method, request) if meta.request_id else None
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        job = Job(operation, actor, meta, once, durable, future)
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

    def _publish(self, outcomes: list[Outcome]) -> None:
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
