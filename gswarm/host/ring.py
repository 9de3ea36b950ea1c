"""One node's last ten minutes of ticks in order of time, several deflated together: neighbours are nearly the same."""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLOCK = 8
"""Ticks deflated together: at 3 kB each they share deflate's window of 32 kB, and one is found in about 30 us."""
LEVEL = 1
_HEAD = struct.Struct("<qI")
"""Before each tick in a block: its time and size."""

Tick = tuple[int, bytes]
"""Time on the node's clock in microseconds, and the serialised tick."""


@dataclass(frozen=True, slots=True)
class _Block:
    first_us: int
    last_us: int
    size: int
    """Of its ticks as they came."""
    deflated: bytes

    @classmethod
    def of(cls, ticks: Sequence[Tick]) -> _Block:
        joined = b"".join(part for at, wire in ticks for part in (_HEAD.pack(at, len(wire)), wire))
        return cls(ticks[0][0], ticks[-1][0], sum(len(wire) for _, wire in ticks), zlib.compress(joined, LEVEL))

    def ticks(self) -> list[Tick]:
        data, at, found = zlib.decompress(self.deflated), 0, []
        while at < len(data):
            time_us, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            found.append((time_us, data[at : at + size]))
            at += size
        return found


class Ring:
    """What was added, each moment once, as far back from the newest as is kept."""

    __slots__ = ("_blocks", "_kept_us", "_limit", "_recent", "size")

    def __init__(self, kept_us: int, limit_bytes: int) -> None:
        """Ticks older than `kept_us` before the newest go; so do the oldest while all are more than `limit_bytes` as they
        came: a reader is sent them whole, however well they deflate."""
        self._kept_us, self._limit = kept_us, limit_bytes
        self._blocks: list[_Block] = []
        self._recent: list[Tick] = []
        """The newest ones, not deflated yet: never empty once something was added, and after all blocks."""
        self.size = 0
        """Bytes of all ticks as they came."""

    @property
    def held(self) -> int:
        """Bytes of all ticks as they are held."""
        return sum(len(block.deflated) for block in self._blocks) + sum(len(wire) for _, wire in self._recent)

    def add(self, time_us: int, wire: bytes) -> bool:
        """Put a tick where it belongs; False when there is one of this moment."""
        if self._blocks and time_us <= self._blocks[-1].last_us:
            if not self._insert(time_us, wire):
                return False
        else:
            # Looked for from the end: that is where it belongs, or behind a cut near to it, for the newest come first.
            place = len(self._recent)
            while place and self._recent[place - 1][0] > time_us:
                place -= 1
            if place and self._recent[place - 1][0] == time_us:
                return False
            self._recent.insert(place, (time_us, wire))
            self.size += len(wire)
            if len(self._recent) > BLOCK:
                full, self._recent = self._recent[:BLOCK], self._recent[BLOCK:]
                self._blocks.append(_Block.of(full))
        self._expire()
        return True

    def _insert(self, time_us: int, wire: bytes) -> bool:
        """Into the block that it came too late for."""
        place = max(0, bisect_right(self._blocks, time_us, key=lambda block: block.first_us) - 1)
        ticks = self._blocks[place].ticks()
        at = bisect_right(ticks, time_us, key=lambda tick: tick[0])
        if at and ticks[at - 1][0] == time_us:
            return False
        ticks.insert(at, (time_us, wire))
        parts = [ticks] if len(ticks) < 2 * BLOCK else [ticks[:BLOCK], ticks[BLOCK:]]
        self._blocks[place : place + 1] = [_Block.of(part) for part in parts]
        self.size += len(wire)
        return True

    def _expire(self) -> None:
        """A block goes when all of it is too old; until then its older ticks are held, and not shown."""
        gone, since = 0, self._since(self._kept_us)
        for block in self._blocks:
            if block.last_us >= since and self.size <= self._limit:
                break
            self.size -= block.size
            gone += 1
        if gone:
            del self._blocks[:gone]
        while self.size > self._limit and len(self._recent) > 1:
            self.size -= len(self._recent.pop(0)[1])

    def _since(self, span_us: float) -> float:
        return self._recent[-1][0] - min(span_us, self._kept_us) if self._recent else 0.0

    def last(self, span_us: float) -> list[bytes]:
        """Ticks of the last so many microseconds before the newest, which is always among them, in order of time."""
        since = self._since(span_us)
        return [wire for time_us, wire in self._every(since) if time_us >= since]

    def _every(self, since: float) -> Iterator[Tick]:
        for block in self._blocks:
            if block.last_us >= since:
                yield from block.ticks()
        yield from self._recent

    def at(self, time_us: int) -> bytes | None:
        """The newest tick at or before a moment; None when none is kept from then."""
        held: Sequence[Tick] = self._recent
        if not held or time_us < held[0][0]:
            place = bisect_right(self._blocks, time_us, key=lambda block: block.first_us)
            held = self._blocks[place - 1].ticks() if place else ()
        at = bisect_right(held, time_us, key=lambda tick: tick[0])
        if not at or held[at - 1][0] < self._since(self._kept_us):
            return None
        return held[at - 1][1]
