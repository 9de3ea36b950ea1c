"""Fan-out of the state to watchers: list then follow, coalesced per object, every message's bytes shared."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime

from google.protobuf.message import Message

from gswarm.host.samples import SampleHub
from gswarm.host.selection import predicate, select
from gswarm.host.state import Batch, Changed
from gswarm.host.store import Store
from gswarm.kinds import BY_KIND, wire_of
from gswarm.v1 import cluster_pb2, common_pb2
from gswarm.wire import length_prefixed

CHUNK_BYTES = 1 << 17
"""A list is serialised so much at a time, with room for others in between: of thousands of objects it takes a while."""
HEARTBEAT_S = 2.0
LISTED_EVENTS = 200
SAMPLES_EVERY_S = 0.25
"""Ticks of many nodes come spread over the second; a watcher gets those of so long together. State never waits."""
OVERFLOW_FLOOR = 1_000
"""Pending changes that are always kept, however few objects are watched."""


def _mark(revision: int, time: datetime, *, whole_list: bool = False) -> bytes:
    response = cluster_pb2.WatchResponse(revision=revision, list=whole_list)
    response.time.FromDatetime(time)
    return response.SerializeToString()


_LIST = cluster_pb2.WatchResponse(list=True).SerializeToString()


class Watcher:
    """One reader: what it asked for, and what it has not been sent yet."""

    def __init__(self, store: Store, hub: SampleHub, request: cluster_pb2.WatchRequest) -> None:
        """Raises InvalidError when the request names unknown fields."""
        self.store, self.hub, self.request = store, hub, request
        self.kinds: frozenset[int] = frozenset(request.kinds) or frozenset(BY_KIND)
        self._passes: dict[int, Callable[[Message], bool]] = (
            {kind: predicate(kind, request.filters) for kind in self.kinds} if request.filters else {}
        )
        self._keys = frozenset(request.keys)
        self._pending: dict[tuple[int, str], bytes] = {}
        self._ticks: dict[str, bytes] = {}
        self._schemas: dict[str, bytes] = {}
        self._sample_nodes = frozenset(request.samples.nodes) if request.HasField("samples") else None
        self._revision = 0
        self._sent = 0
        self._relist = False
        self._wake = asyncio.Event()
        self._ticks_due: asyncio.TimerHandle | None = None

    async def follow(self) -> AsyncIterator[bytes]:
        """Serialised WatchResponses until cancelled, or until the list is out with `list_only`."""
        if self.request.list_only:
            for message in itertools.chain(self._list(), self._past()):
                yield message
                await asyncio.sleep(0)
            return
        unsubscribe = [self.store.subscribe(self._on_batch)]
        if self._sample_nodes is not None:
            unsubscribe.append(self.hub.subscribe(self._on_tick))
        try:
            async for message in self._full_list():
                yield message
            for message in self._past() if self.request.samples.at_unix_us else self._history():
                yield message
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await self._wake.wait()
                except TimeoutError:
                    yield _mark(self.store.state.revision if not self._pending else self._sent, datetime.now(UTC))
                    continue
                self._wake.clear()
                if self._relist:
                    async for message in self._full_list():
                        yield message
                    continue
                for message in self._drain():
                    yield message
        finally:
            for end in unsubscribe:
                end()
            if self._ticks_due is not None:
                self._ticks_due.cancel()

    async def _full_list(self) -> AsyncIterator[bytes]:
        self._relist = False
        self._pending.clear()
        for message in self._list():
            yield message
            await asyncio.sleep(0)

    def _list(self) -> Iterator[bytes]:
        # Chosen whole before anything is sent: what changes meanwhile comes after it, in batches.
        state = self.store.state
        revision, now = state.revision, datetime.now(UTC)
        chosen = {kind: self._chosen(kind) for kind in sorted(self.kinds)}
        self._sent = self._revision = revision
        chunk = bytearray()
        for kind, (rows, left_out) in chosen.items():
            for message, (key, since) in rows:
                chunk += length_prefixed(1, wire_of(kind, key, since, message.SerializeToString()))
                if len(chunk) >= CHUNK_BYTES:
                    yield bytes(chunk) + _LIST
                    chunk.clear()
            if left_out:
                rest = cluster_pb2.Rest(kind=BY_KIND[kind].kind, left_out=left_out)
                chunk += length_prefixed(5, rest.SerializeToString())
        yield bytes(chunk) + _mark(revision, now, whole_list=True)

    def _chosen(self, kind: int) -> tuple[list[tuple[Message, tuple[str, int]]], int]:
        """What of a kind is listed, each with its key and revision, and how many the limit left out."""
        found = list(self.store.state.entries(kind).items())
        if kind == common_pb2.KIND_EVENT and not (self.request.limit or self.request.filters or self.request.sort):
            found = found[-LISTED_EVENTS:]
        return select(kind, ((entry.message, (key, entry.revision)) for key, entry in found), self.request)

    def _history(self) -> Iterator[bytes]:
        if self._sample_nodes is None:
            return
        self._ticks.clear()
        for node in self.hub.nodes():
            if self._sample_nodes and node not in self._sample_nodes:
                continue
            parts = [length_prefixed(6, schema) for schema in self.hub.schemas(node)]
            ticks = self.hub.history(node, min(self.request.samples.history_s, 600.0))
            parts += [length_prefixed(7, tick) for tick in ticks]
            if parts:
                yield b"".join(parts)

    def _past(self) -> Iterator[bytes]:
        """The samples of the moment that was asked for."""
        if self._sample_nodes is None or not self.request.samples.at_unix_us:
            return
        for node in self.hub.nodes():
            tick = self.hub.at(node, self.request.samples.at_unix_us)
            if tick is not None and (not self._sample_nodes or node in self._sample_nodes):
                yield b"".join((*(length_prefixed(6, s) for s in self.hub.schemas(node)), length_prefixed(7, tick)))

    def _on_batch(self, batch: Batch) -> None:
        self._revision = batch.revision
        for change in batch.changes:
            if (wire := self._wanted(change)) is not None:
                slot = (change.kind, change.key)
                self._pending.pop(slot, None)
                self._pending[slot] = wire
        watched = sum(len(self.store.state.entries(kind)) for kind in self.kinds)
        if len(self._pending) > max(OVERFLOW_FLOOR, watched):
            self._relist = True
            self._pending.clear()
        self._wake.set()

    def _wanted(self, change: Changed) -> bytes | None:
        """What to send for a change: the object, a deletion when it left the filter, or nothing."""
        if change.kind not in self.kinds or (self._keys and change.key not in self._keys):
            return None
        if change.new is None or not self._passes:
            return change.wire
        passes = self._passes[change.kind]
        if passes(change.new):
            return change.wire
        if (change.old is not None and passes(change.old)) or (change.kind, change.key) in self._pending:
            return cluster_pb2.Object(kind=BY_KIND[change.kind].kind, key=change.key, deleted=True).SerializeToString()
        return None

    def _on_tick(self, node: str, tick: bytes, schema: bytes | None) -> None:
        if self._sample_nodes and node not in self._sample_nodes:
            return
        if schema is not None:
            self._schemas[node] = schema
        if tick:
            self._ticks[node] = tick  # a slow reader gets the newest of each node
        if self._ticks_due is None:
            self._ticks_due = asyncio.get_running_loop().call_later(SAMPLES_EVERY_S, self._wake.set)

    def _drain(self) -> Iterator[bytes]:
        pending, self._pending = self._pending, {}
        revision = self._revision
        chunk = bytearray()
        for wire in pending.values():
            chunk += length_prefixed(1, wire)
            if len(chunk) >= CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        if pending or revision != self._sent:
            chunk += _mark(revision, self.store.state.time)
            self._sent = revision
        schemas, self._schemas = self._schemas, {}
        ticks, self._ticks = self._ticks, {}
        if self._ticks_due is not None:
            self._ticks_due.cancel()
            self._ticks_due = None
        for schema in schemas.values():
            chunk += length_prefixed(6, schema)
        for tick in ticks.values():
            chunk += length_prefixed(7, tick)
        if chunk:
            yield bytes(chunk)
