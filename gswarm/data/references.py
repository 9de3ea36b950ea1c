"""Who holds a chunk: named, dated leases as pure functions over the wire message."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from gswarm.errors import InvalidError, NotFoundError, RefusedError
from gswarm.v1.data_pb2 import Chunk, Holder

DEFAULT_LEASE_S = 3600.0
MAX_LEASE_S = 30 * 86400.0


def lease_seconds(asked: float) -> float:
    """The lease to give for what was asked, seconds; 0 asks for the default."""
    if asked == 0:
        return DEFAULT_LEASE_S
    if not 0 < asked <= MAX_LEASE_S:
        raise InvalidError(f"a lease of {asked:g} s cannot be given", next="ask for 1 s to 30 days", field="lease")
    return asked


def acquire(chunk: Chunk, holder: str, *, actor: str, lease_s: float, now: datetime) -> Holder:
    """Give `holder` a lease, or renew the one it has; `since` keeps the first time."""
    lease = lease_seconds(lease_s)
    entry = next((h for h in chunk.holders if h.name == holder), None)
    if entry is None:
        entry = chunk.holders.add(name=holder, actor=actor)
        entry.since.FromDatetime(now)
    entry.expires_at.FromDatetime(now + timedelta(seconds=lease))
    return entry


def release(chunk: Chunk, holder: str) -> None:
    """Take the lease of `holder` away; NotFoundError when it has none."""
    for index, entry in enumerate(chunk.holders):
        if entry.name == holder:
            del chunk.holders[index]
            return
    held = ", ".join(sorted(h.name for h in chunk.holders)) or "no one"
    raise NotFoundError(f"{holder} does not hold chunk {chunk.id}", why=f"it is held by {held}", field="holder")


def expire(chunk: Chunk, now: datetime) -> list[Holder]:
    """Remove the leases that have ended and return them."""
    ended = [h for h in chunk.holders if _utc(h.expires_at.ToDatetime(), now) <= now]
    for entry in ended:
        chunk.holders.remove(entry)
    return ended


def next_expiry(chunks: Iterable[Chunk], now: datetime) -> datetime | None:
    """When the next lease of any of these ends; None when no one holds anything."""
    return min((_utc(h.expires_at.ToDatetime(), now) for c in chunks for h in c.holders), default=None)


def refuse_if_held(chunk: Chunk) -> None:
    """Raise RefusedError naming every holder, since when and until when."""
    if not chunk.holders:
        return
    names = "; ".join(
        f"{h.name} since {h.since.ToDatetime():%Y-%m-%d %H:%M:%S} until {h.expires_at.ToDatetime():%H:%M:%S} UTC"
        for h in chunk.holders
    )
    raise RefusedError(
        f"chunk {chunk.id} is held",
        why=f"by {names}",
        next=f"release it first: gswarm data release {chunk.id} --holder {chunk.holders[0].name}",
    )


def _utc(naive: datetime, like: datetime) -> datetime:
    return naive.replace(tzinfo=like.tzinfo)
