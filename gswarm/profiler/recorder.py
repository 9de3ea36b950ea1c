"""Recording sessions on the host: one subscription each, written in line, one write and one fdatasync a tick."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from gswarm import __version__, net
from gswarm.host.samples import SampleHub
from gswarm.host.state import Batch, Changed
from gswarm.kinds import BY_KIND, wire_of
from gswarm.profiler.journal import FORMAT, Record, Writer, frame
from gswarm.v1 import cluster_pb2, profiler_pb2, queue_pb2
from gswarm.wire import length_prefixed

if TYPE_CHECKING:
    from gswarm.host.nodes import Nodes
    from gswarm.host.store import Store

log = logging.getLogger("gswarm.host")
LIST_EVERY_S = 60.0
FLUSH_S = 0.5
BUFFER_LIMIT = 64 << 20
MANIFEST = "manifest.json"
JOURNAL = "journal"


def now_us() -> int:
    """Host time, microseconds since the epoch."""
    return time.time_ns() // 1000


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


class Recorder:
    """Writes one session. `told` is called on the loop with (ticks, events, bytes, problem) after each flush."""

    def __init__(
        self,
        directory: Path,
        session: profiler_pb2.Session,
        store: Store,
        hub: SampleHub,
        nodes: Nodes,
        told: Callable[[int, int, int, str], None],
    ) -> None:
        self.directory, self.session = directory, session
        self._store, self._hub, self._nodes, self._told = store, hub, nodes, told
        self._wanted = frozenset(session.nodes)
        self._buffer = bytearray()
        self._acks: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._schemas: set[tuple[str, bytes]] = set()
        self._ticks, self._events = int(session.ticks), int(session.events)
        self._lost = ""

    def wants(self, node: str) -> bool:
        """Whether this session records a node."""
        return not self._wanted or node in self._wanted

    async def run(self) -> None:
        """Record until cancelled, then write what is left."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_manifest()
        writer = await asyncio.to_thread(Writer, self.directory / JOURNAL)
        # Subscribe, then list, without a pause between: nothing is missed and nothing comes twice.
        unsubscribe = [self._store.subscribe(self._on_batch), self._hub.subscribe(self._on_tick)]
        self._full_list()
        listed = time.monotonic()
        try:
            while True:
                await asyncio.sleep(max(FLUSH_S, min(self.session.interval_s, 1.0)))
                if time.monotonic() - listed >= LIST_EVERY_S:
                    self._full_list()
                    listed = time.monotonic()
                whole = await self._flush(writer)
                self._told(self._ticks, self._events, writer.size, self._lost)
                if not whole:
                    # What did not fit is gone; start whole again as soon as there is room.
                    self._full_list()
        finally:
            for end in unsubscribe:
                end()
            await self._flush(writer)
            writer.close()

    def _write_manifest(self) -> None:
        started: datetime = self.session.started_at.ToDatetime()
        body = {
            "format": FORMAT,
            "name": self.session.name,
            "gswarm": __version__,
            "interval_s": self.session.interval_s,
            "nodes": list(self.session.nodes),
            "started_at": f"{started.isoformat()}Z",
            "payloads": False,
        }
        net.write_private(self.directory / MANIFEST, json.dumps(body, indent=2) + "\n")

    async def _flush(self, writer: Writer) -> bool:
        records, self._buffer = bytes(self._buffer), bytearray()
        acks, self._acks = self._acks, {}
        if not records:
            return True
        try:
            await asyncio.to_thread(writer.append, records)
        except OSError as error:
            self._lost = f"cannot write: {error.strerror}"
            self._append(Record.GAP, now_us(), self._lost.encode())
            return False
        self._lost = ""
        for node, seq in acks.items():
            self._nodes.ack_ticks(node, seq)
        return True

    def _append(self, kind: Record, time_us: int, payload: bytes) -> None:
        if len(self._buffer) + len(payload) > BUFFER_LIMIT:
            self._buffer.clear()
            self._buffer += frame(Record.GAP, time_us, b"the disk is slower than the cluster")
        self._buffer += frame(kind, time_us, payload)

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
        self._append(Record.BATCH, now_us(), bytes(body) + mark.SerializeToString())
        self._events += 1

    def _on_tick(self, node: str, tick: bytes, schema: bytes | None) -> None:
        if not self.wants(node):
            return
        now = now_us()
        if schema is not None:
            self._append(Record.SCHEMA, now, schema)
        if not tick:
            return
        parsed = profiler_pb2.SampleTick.FromString(tick)
        self._acks[node] = parsed.seq
        # Slower than the agent samples: take the first tick of each interval.
        step = int(self.session.interval_s * 1e6)
        slot = (parsed.time_unix_us + step // 4) // step
        if self._last.get(node) == slot:
            return
        self._last[node] = slot
        self._append(Record.TICK, now, tick)
        self._ticks += 1

    def _full_list(self) -> None:
        state = self._store.state
        body = bytearray()
        for kind in BY_KIND:
            for entry in state.entries(kind).values():
                wire = entry.wire
                if isinstance(entry.message, queue_pb2.Task):
                    wire = wire_of(
                        kind, entry.message.id, entry.revision, without_payload(entry.message).SerializeToString()
                    )
                body += length_prefixed(1, wire)
        mark = cluster_pb2.WatchResponse(revision=state.revision, list=True)
        mark.time.FromDatetime(state.time)
        now = now_us()
        self._append(Record.LIST, now, bytes(body) + mark.SerializeToString())
        for node in self._hub.nodes():
            if self.wants(node):
                for schema in self._hub.schemas(node):
                    self._append(Record.SCHEMA, now, schema)
