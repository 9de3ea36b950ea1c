"""Chunks and who holds them: what data actions return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import ConditionState, Progress


class ChunkType(Enum):
    """Mirrors the wire enum ChunkType."""

    UNKNOWN = "unknown"
    BYTES = "bytes"
    FILE = "file"
    JSON = "json"
    NUMPY = "numpy"


class LocationPhase(Enum):
    """Mirrors the wire enum LocationPhase."""

    UNKNOWN = "unknown"
    PENDING = "pending"  # Wanted there; the agent will pull it.
    PRESENT = "present"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Holder:
    """Mirrors the wire message Holder."""

    name: str = ""
    """Who, as they named themselves."""
    since: datetime | None = None
    expires_at: datetime | None = None
    """When the lease ends unless renewed."""
    actor: str = ""
    """Token name that took it."""


@dataclass(frozen=True, slots=True)
class Location:
    """Mirrors the wire message Location."""

    node: str = ""
    phase: LocationPhase = LocationPhase.UNKNOWN
    detail: str = ""
    bytes_done: int = 0
    """Bytes arrived so far while pending."""
    transfer_s: float | None = None
    """Seconds the transfer took; absent for the first copy."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """An immutable, sealed piece of data. Key: id."""

    id: str = ""
    """First 16 hex digits of the digest, "-2" and so on behind it when taken."""
    type: ChunkType = ChunkType.UNKNOWN
    dtype: str = ""
    """Numpy dtype string such as "<f4"; empty for other types."""
    shape: tuple[int, ...] = ()
    """Array shape; empty for other types."""
    size_bytes: int = 0
    digest: str = ""
    """BLAKE3, hex."""
    name: str = ""
    """File name or label the owner gave; may be empty."""
    created_at: datetime | None = None
    last_read_at: datetime | None = None
    """Absent: never read."""
    holders: tuple[Holder, ...] = ()
    locations: tuple[Location, ...] = ()
    actor: str = ""
    """Token name that put it."""


def transfer_done(asked: Chunk, now: Chunk | None) -> Progress:
    """How far the copies are that were on their way when `asked` was answered."""
    waited = {place.node for place in asked.locations if place.phase is LocationPhase.PENDING}
    if now is None:
        return Progress(ConditionState.FAILED, None, f"chunk {asked.id} was deleted meanwhile")
    places = {place.node: place for place in now.locations if place.node in waited}
    if gone := waited - places.keys():
        return Progress(ConditionState.FAILED, None, f"{', '.join(sorted(gone))} left before the copy arrived")
    if failed := next((p for p in places.values() if p.phase is LocationPhase.FAILED), None):
        return Progress(ConditionState.FAILED, None, f"{failed.node}: {failed.detail}")
    pending = [p for p in places.values() if p.phase is not LocationPhase.PRESENT]
    if not pending:
        return Progress(ConditionState.DONE, 1.0, f"{now.id} is on {', '.join(sorted(waited)) or 'that node'}")
    fraction = min(p.bytes_done for p in pending) / now.size_bytes if now.size_bytes else None
    return Progress(ConditionState.PENDING, fraction, f"{now.id} is on its way to {', '.join(p.node for p in pending)}")
