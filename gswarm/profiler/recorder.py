"""Recording sessions on the host: one subscription each, written in line, one write and one fdatasync a flush."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from gswarm.errors import GswarmError
from gswarm.host.samples import SampleHub
from gswarm.host.state import Batch, Changed
from gswarm.kinds import BY_KIND, wire_of
from gswarm.profiler import manifest as manifests
from gswarm.profiler.adaptive import EARLY_S
from gswarm.profiler.clocks import NOT_RUNNING, HostClock
from gswarm.profiler.journal import Record, Writer, frame
from gswarm.profiler.manifest import Manifest
from gswarm.profiler.recording import Recording
from gswarm.v1 import cluster_pb2, profiler_pb2, queue_pb2
from gswarm.wire import length_prefixed

if TYPE_CHECKING:
    from gswarm.host.nodes import Nodes
    from gswarm.host.store import Store
    from gswarm.profiler.selected import Selected

log = logging.getLogger("gswarm.host")
R = TypeVar("R")
EARLY_US = int(EARLY_S * 1e6)
LIST_EVERY_S = 60.0
FLUSH_S = (0.1, 1.0)
"""How long a record waits for others to be written with it: the session's interval within these bounds."""
RETRY_S = (1.0, 10.0)
OPENS_WITHIN_US = 5_000_000
"""A session whose journal opens sooner has recorded since it was started: a mark right after the start is in it."""
BUFFER_LIMIT = 64 << 20
SEGMENT_BYTES = 32 << 20
"""A journal of this size is closed and sealed while the next one is written: what bounds the memory of the sealing."""


def without_payload(message: Message) -> Message:
    """A task with its prompt and output as size and digest only; anything else as it is."""
    if not isinstance(message, queue_pb2.Task) or not (message.params_json or message.output_json):
        return message
    copy = queue_pb2.Task()
    copy.CopyFrom(message)
    for name in ("params_json", "output_json"):
        if text := getattr(message, name):
            digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            setattr(copy, name, json.dumps({"bytes": len(text.encode()), "digest": digest}))
    return copy


def _counts_only(change: Changed) -> bool:
    """Whether a session differs only in how much it holds."""
    old, new = change.old, change.new
    return isinstance(old, profiler_pb2.Session) and isinstance(new, profiler_pb2.Session) and old.phase == new.phase


@dataclass(frozen=True, slots=True)
class Told:
    """What a recorder has written: node ticks, changes, bytes on disk of the running journal, and what is wrong."""

    ticks: int
    events: int
    journal_bytes: int
    problem: str = ""


def manifest_of(session: profiler_pb2.Session) -> Manifest:
    """What the recording's manifest says of a session."""
    started = session.started_at.ToDatetime().isoformat() + "Z"
    stopped = session.stopped_at.ToDatetime().isoformat() + "Z" if session.HasField("stopped_at") else ""
    return Manifest(
        session.name,
        session.interval_s,
        tuple(session.nodes),
        tuple(session.metrics),
        dict(session.tags),
        started,
        stopped,
        session.actor,
        slowest_s=session.slowest_s,
    )


async def _whole(function: Callable[[], R]) -> R:
    """Run it in a thread, to its end also when we are cancelled meanwhile: two must never write at once."""
    running = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.exception()
        raise


class Recorder:
    """Writes one session. `told` is called on the loop after each flush, `rotated` with the number of a full journal."""

    def __init__(
        self,
        directory: Path,
        session: profiler_pb2.Session,
        store: Store,
        hub: SampleHub,
        nodes: Nodes,
        told: Callable[[Told], None],
        rotated: Callable[[int], None] = lambda number: None,
        status: Callable[[], cluster_pb2.StatusResponse] | None = None,
    ) -> None:
        self.directory, self.session = directory, session
        self._store, self._hub, self._nodes, self._told, self._rotated = store, hub, nodes, told, rotated
        self._status = status
        self._wanted = frozenset(session.nodes)
        self._metrics = frozenset(session.metrics)
        self._step_us = int(session.interval_s * 1e6)
        self._clock = HostClock()
        self._buffer = bytearray()
        self._kept = b""
        """What could not be written yet: it goes before the buffer."""
        self._acks: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self._older: dict[str, int] = {}
        """Slots of time that are written already: the newest of a node, and the last of those that came late."""
        self._selected: dict[tuple[str, int], Selected] = {}
        self._ticks, self._events = int(session.ticks), int(session.events)
        self._changed = False
        """Whether anything changed since the last full list."""
        self._dropped = False
        self._problem = ""
        self._wake = asyncio.Event()
        self._number = 0
        self._writer: Writer | None = None
        self._begins_us = 0
        """The time of the first record of all; 0: when it is written."""

    def wants(self, node: str) -> bool:
        """Whether this session records a node."""
        return not self._wanted or node in self._wanted

    async def run(self) -> None:
        """Record until cancelled, then write what is left; a session too short to open its journal has its list."""
        try:
            await self._opened()
        except asyncio.CancelledError:
            if self._writer is not None:
                self._full_list()
                await self._close()
            raise
        # Subscribe, then list, without a pause between: nothing is missed and nothing comes twice.
        unsubscribe = [self._store.subscribe(self._on_batch), self._hub.subscribe(self._on_tick)]
        self._full_list()
        try:
            await self._write()
        finally:
            for end in unsubscribe:
                end()
            await self._close()

    async def moment(self) -> None:
        """Record how things stand, and no more: of a session that ended before it began. Raises OSError."""
        await _whole(self._open)
        self._full_list()
        await self._close()

    async def _write(self) -> None:
        listed = time.monotonic()
        pause = RETRY_S[0]
        while True:
            await self._wake.wait()
            # Wait for others to be written with it.
            await asyncio.sleep(min(max(self.session.interval_s, FLUSH_S[0]), FLUSH_S[1]))
            if time.monotonic() - listed >= LIST_EVERY_S:
                if self._changed:
                    self._full_list()
                else:
                    self._announce()
                listed = time.monotonic()
            if not await self._flush():
                self._tell()
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_S[1])
                continue
            pause = RETRY_S[0]
            self._tell()
            if self._writer is not None and self._writer.size >= SEGMENT_BYTES and await self._next():
                listed = time.monotonic()

    def _tell(self) -> None:
        size = self._writer.size if self._writer is not None else 0
        self._told(Told(self._ticks, self._events, size, self._problem))

    async def _close(self) -> None:
        if not await self._flush():
            log.error("session %s ends with %d bytes unwritten: %s", self.session.name, len(self._kept), self._problem)
        if self._writer is not None:
            await _whole(self._writer.close)
            self._writer = None

    async def _opened(self) -> None:
        """Open the journal; while the disk does not take one, that is told and tried again."""
        pause = RETRY_S[0]
        while True:
            try:
                await _whole(self._open)
                return
            except OSError as error:
                self._problem = f"cannot write: {error.strerror}; it goes on when there is room"
                self._tell()
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_S[1])

    def _open(self) -> None:
        """Go on with the journal of an earlier run, or start the next. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        manifests.adopt(self.directory)
        manifest_of(self.session).write(self.directory)
        known = manifests.segments(self.directory)
        self._number = known[-1].number + (1 if known[-1].sealed else 0) if known else 1
        if known:
            # Counts are not written to disk with each tick: after a restart the files know better.
            with contextlib.suppress(GswarmError), Recording.open(self.directory) as earlier:
                self._ticks, self._events = earlier.counts()
        self._writer = Writer(manifests.files(self.directory, self._number).journal)
        self._clock.after(self._writer.last_us)
        if known:
            self._append(Record.GAP, NOT_RUNNING)
        elif 0 <= self._clock.now_us() - (started_us := self.session.started_at.ToMicroseconds()) < OPENS_WITHIN_US:
            self._begins_us = started_us  # what happened while it was opened is in the first list

    async def _next(self) -> bool:
        """Go on in another journal and hand the full one over; False while there is no room: then it grows on."""

        path = manifests.files(self.directory, self._number + 1).journal
        try:
            following = await _whole(lambda: Writer(path))
        except OSError as error:
            log.warning("session %s: no new journal: %s", self.session.name, error.strerror)
            return False
        # Without a pause between: what came until now ends the full journal, what comes from now on follows the list.
        full, rest = self._writer, bytes(self._buffer)
        self._writer, self._buffer = following, bytearray()
        self._full_list()
        try:
            if full is not None:
                await _whole(partial(full.append, rest))
                await _whole(full.close)
        except OSError as error:
            log.warning("session %s: no new journal: %s", self.session.name, error.strerror)
            self._writer, self._kept = full, rest
            await _whole(following.close)
            await _whole(partial(path.unlink, missing_ok=True))
            return False
        self._number += 1
        self._rotated(self._number - 1)
        return True

    async def _flush(self) -> bool:
        """Write what came; False when it cannot be, it is then kept for the next time."""
        self._wake.clear()
        if self._writer is None:
            return False
        if self._dropped:
            self._dropped = False
            self._append(Record.GAP, self._problem.encode())
            self._full_list()
        records, self._buffer, self._kept = self._kept + bytes(self._buffer), bytearray(), b""
        acks, self._acks = self._acks, {}
        try:
            if records:
                await _whole(partial(self._writer.append, records))
        except OSError as error:
            self._kept, self._acks = records, acks | self._acks
            self._problem = f"cannot write: {error.strerror}; it goes on when there is room"
            if len(self._kept) + len(self._buffer) > BUFFER_LIMIT:
                self._drop()
            self._wake.set()
            return False
        self._problem = ""
        for node, seq in acks.items():
            self._nodes.ack_ticks(node, seq)
        return True

    def _drop(self) -> None:
        """More waits than may be held: start whole again once it can be written."""
        self._kept, self._buffer, self._dropped = b"", bytearray(), True
        self._problem = self._problem or "the disk is slower than the cluster"

    def _append(self, kind: Record, payload: bytes) -> None:
        if self._dropped:
            return
        # A list is what recording starts anew with: it must fit, whatever its size.
        if kind is not Record.LIST and len(self._kept) + len(self._buffer) + len(payload) > BUFFER_LIMIT:
            self._drop()
        else:
            self._buffer += frame(kind, self._begins_us or self._clock.now_us(), payload)
            self._begins_us = 0
        self._wake.set()

    def _on_batch(self, batch: Batch) -> None:
        if all(_counts_only(change) for change in batch.changes):
            return  # what recorders tell of themselves; recorded, it would be told again, for ever
        body = bytearray()
        for change in batch.changes:
            if isinstance(change.new, queue_pb2.Task):
                wire = wire_of(change.kind, change.key, batch.revision, without_payload(change.new).SerializeToString())
            else:
                wire = change.wire
            body += length_prefixed(1, wire)
        mark = cluster_pb2.WatchResponse(revision=batch.revision)
        mark.time.FromDatetime(batch.time)
        self._append(Record.BATCH, bytes(body) + mark.SerializeToString())
        self._events += 1
        self._changed = True

    def _on_tick(self, node: str, tick: bytes, schema: bytes | None) -> None:
        if not self.wants(node):
            return
        if schema is not None:
            self._on_schema(schema)
        if not tick:
            return
        parsed = profiler_pb2.SampleTick.FromString(tick)
        self._acks[node] = parsed.seq
        self._wake.set()
        if self._has(node, parsed.time_unix_us):
            return
        if chosen := self._selected.get((node, parsed.schema_id)):
            tick = chosen.cut(parsed).SerializeToString()
        self._append(Record.TICK, tick)
        self._ticks += 1

    def _has(self, node: str, time_us: int) -> bool:
        """Whether a tick's slot of time is written: a session slower than the agent takes the first of each interval."""
        slot = (time_us + EARLY_US) // self._step_us
        newest = self._newest.get(node)
        if newest is None or slot > newest:
            self._newest[node] = slot
            return False
        if slot == newest or slot == self._older.get(node):
            return True
        # Held back by a cut, newest first; or the node's clock was set back.
        self._older[node] = slot
        return False

    def _on_schema(self, schema: bytes) -> None:
        if self._metrics:
            from gswarm.profiler.selected import Selected

            chosen = Selected(profiler_pb2.MetricSchema.FromString(schema), self._metrics)
            self._selected[chosen.schema.node, chosen.schema.id] = chosen
            schema = chosen.schema.SerializeToString()
        self._append(Record.SCHEMA, schema)

    def _full_list(self) -> None:
        state = self._store.state
        body = bytearray()
        for kind in BY_KIND:
            for key, (message, revision) in state.entries(kind).items():
                kept = without_payload(message) if isinstance(message, queue_pb2.Task) else message
                body += length_prefixed(1, wire_of(kind, key, revision, kept.SerializeToString()))
        mark = cluster_pb2.WatchResponse(revision=state.revision, list=True)
        mark.time.FromDatetime(state.time)
        if self._status is not None:
            mark.host.CopyFrom(self._status())
        self._append(Record.LIST, bytes(body) + mark.SerializeToString())
        self._changed = False
        self._announce()

    def _announce(self) -> None:
        """Every schema again: without it ticks mean nothing, and one copy is one flipped bit."""
        for node in self._hub.nodes():
            if self.wants(node):
                for schema in self._hub.schemas(node):
                    self._on_schema(schema)
