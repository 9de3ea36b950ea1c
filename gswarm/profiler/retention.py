"""Recordings that go: what was deleted half, what is too old, what takes too much room; and those no one knows of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm import units
from gswarm.errors import GswarmError
from gswarm.names import check_name
from gswarm.profiler import manifest as manifests
from gswarm.profiler.manifest import MANIFEST, Manifest
from gswarm.v1 import profiler_pb2
from gswarm.v1.profiler_pb2 import Session

if TYPE_CHECKING:
    from gswarm.config import ProfilerConfig
    from gswarm.host.store import Store
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
GONE = "recording.gone:"
"""Recordings whose deletion is decided: a small value stands until the files are gone, also over a crash."""


def delete(tx: Transaction, session: Session, why: str = "") -> None:
    """Decide that a session goes; `remove` then deletes its files."""
    tx.delete(Session, session.name)
    tx.put_value(GONE + session.name, b"1")
    tx.event("session.deleted", f"session {session.name} deleted{f': {why}' if why else ''}", subject=session)


async def remove(store: Store, root: Path, name: str) -> None:
    """Delete the files of a session that `delete` was called for."""
    await asyncio.to_thread(shutil.rmtree, root / check_name(name, "session name"), True)
    await store.insist(lambda tx: tx.put_value(GONE + name, None), method="recording-gone")


async def tidy(store: Store, root: Path) -> None:
    """Once at the start: finish deletions, and take up recordings that no session stands for."""
    gone = await store.apply(lambda tx: [k for k, _ in tx.list_values(GONE)], actor="host", durable=False)
    for key in gone:
        await remove(store, root, key.removeprefix(GONE))
    for path in await asyncio.to_thread(_recordings, root):
        if store.state.get(Session, path.name) is None:
            try:
                found = await asyncio.to_thread(manifests.read, path)
                check_name(path.name, "session name")
            except GswarmError as error:
                log.warning("%s was left alone: %s", path, error)
                continue
            touched_ns = await asyncio.to_thread(_touched_ns, path)
            await store.insist(_adopting(path, found, touched_ns), method="adopt")


def _recordings(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))


def _touched_ns(path: Path) -> int:
    """When the newest file of a recording was written; now where none is left: without a time it would be infinitely old."""
    newest: list[int] = []
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            with contextlib.suppress(OSError):  # it vanished meanwhile
                newest.append(file.stat().st_mtime_ns)
    return max(newest, default=time.time_ns())


def _adopting(path: Path, found: Manifest, touched_ns: int) -> Callable[[Transaction], None]:
    def operation(tx: Transaction) -> None:
        session = Session(
            name=path.name,
            nodes=found.nodes,
            interval_s=found.interval_s,
            slowest_s=found.slowest_s,
            metrics=found.metrics,
            tags=found.tags,
            phase=profiler_pb2.SESSION_PHASE_STOPPED,  # sealed next, if it is not yet
            path=str(path),
            actor=found.actor,
            generation=1,
        )
        for name in ("started_at", "stopped_at"):
            try:
                moment = datetime.fromisoformat(getattr(found, name))
            except ValueError:
                continue
            getattr(session, name).FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        if not session.HasField("stopped_at"):
            # The host was killed while it recorded: nothing was written after that.
            session.stopped_at.FromNanoseconds(touched_ns)
        tx.put(session)
        tx.event("session.found", f"recording {path.name} was found on disk", subject=session)

    return operation


async def expire(store: Store, root: Path, limits: ProfilerConfig) -> None:
    """Delete sealed recordings that are older than `keep_days`, and the oldest while all take more than `keep_gb`."""
    sealed = sorted(
        (s for s in store.state.list(Session) if s.phase == profiler_pb2.SESSION_PHASE_SEALED),
        key=lambda s: s.stopped_at.ToNanoseconds(),
    )
    total = sum(s.size_bytes for s in store.state.list(Session))
    oldest = datetime.now(UTC) - timedelta(days=limits.keep_days)
    for session in sealed:
        if limits.keep_days and session.stopped_at.ToDatetime(UTC) < oldest:
            why = f"older than {limits.keep_days:g} days"
        elif limits.keep_gb and total > limits.keep_gb * 2**30:
            why = f"recordings take {units.size(total)}, more than {limits.keep_gb:g}G"
        else:
            continue
        total -= session.size_bytes
        name = session.name

        def operation(tx: Transaction, name: str = name, why: str = why) -> bool:
            found = tx.get(Session, name)
            if found is None or found.phase != profiler_pb2.SESSION_PHASE_SEALED:
                return False
            delete(tx, found, why)
            return True

        if await store.insist(operation, method="retention"):
            await remove(store, root, name)
