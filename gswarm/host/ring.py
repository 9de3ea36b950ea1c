"""One node's last ten minutes of ticks in order of time, several deflated together: neighbours are nearly the same."""

from __future__ import annotations

import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

BLOCK = 16
"""Ticks deflated together: most share deflate's window of 32 kB, which halves time and space; one is found in about 50 us."""
LEVEL = 1
_HEAD = struct.Struct("<qI")
"""Before each tick in a block: its time and size."""

Tick = tuple[int, bytes]
"""Time on the node's clock in microseconds, and the serialised tick."""


class _Block:
    """Some ticks in order of time, as they came or deflated."""

    __slots__ = ("_deflated", "_ticks", "first_us", "last_us", "size")

    def __init__(self, ticks: list[Tick]) -> None:
        self._deflated = b""
        self.hold(ticks)

    def hold(self, ticks: list[Tick]) -> None:
        """These, as they came, until it is shut."""
        self._ticks: list[Tick] | None = ticks
        self.first_us, self.last_us = ticks[0][0], ticks[-1][0]
        self.size = sum(len(wire) for _, wire in ticks)

    def shut(self) -> None:
        """Deflate what is held."""
        if self._ticks is not None:
            joined = b"".join(part for at, wire in self._ticks for part in (_HEAD.pack(at, len(wire)), wire))
            self._deflated, self._ticks = zlib.compress(joined, LEVEL), None

    @property
    def held(self) -> int:
        """Bytes that it takes."""
        return len(self._deflated) if self._ticks is None else self.size

    def ticks(self) -> list[Tick]:
        """All of them."""
        if self._ticks is not None:
            return self._ticks
        data, at, found = zlib.decompress(self._deflated), 0, []
        while at < len(data):
            time_us, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            found.append((time_us, data[at : at + size]))
            at += size
        return found


class Ring:
    """What was added, each moment once, as far back from the newest as is kept."""

    __slots__ = ("_blocks", "_full", "_kept_us", "_limit", "_open", "_recent", "_times", "size")

    def __init__(self, kept_us: int, limit_bytes: int, turn: int = 0) -> None:
        """Ticks older than `kept_us` before the newest go; so do the oldest while all are more than `limit_bytes` as they
        came: a reader is sent them whole, however well they deflate. `turn` shortens the first block: rings that begin
        together and have turns of their own do not deflate together.
        """
        self._kept_us, self._limit = kept_us, limit_bytes
        self._full = BLOCK - turn % BLOCK
        self._blocks: list[_Block] = []
        self._open: _Block | None = None
        """The one that late ticks go into: after a cut they come one after another, and each deflates nothing anew."""
        self._recent: list[bytes] = []
        """The newest ones, not deflated yet: never empty once something was added, and after all blocks."""
        self._times = array("q")
        """When those were, by themselves: a pair and a number of each take 90 bytes."""
        self.size = 0
        """Bytes of all ticks as they came."""

    @property
    def held(self) -> int:
        """Bytes of all ticks as they are held."""
        return sum(block.held for block in self._blocks) + sum(len(wire) for wire in self._recent)

    def add(self, time_us: int, wire: bytes) -> bool:
        """Put a tick where it belongs; False when there is one of this moment."""
        if self._blocks and time_us <= self._blocks[-1].last_us:
            if not self._insert(time_us, wire):
                return False
        else:
            place = bisect_right(self._times, time_us)
            if place and self._times[place - 1] == time_us:
                return False
            self._times.insert(place, time_us)
            self._recent.insert(place, wire)
            self.size += len(wire)
            if len(self._recent) > self._full:
                full = slice(self._full)
                self._blocks.append(_Block(list(zip(self._times[full], self._recent[full], strict=True))))
                self._blocks[-1].shut()
                del self._times[full], self._recent[full]
                self._full = BLOCK
                self._turn_to(None)
        self._expire()
        return True

    def _insert(self, time_us: int, wire: bytes) -> bool:
        """Into the block that it came too late for."""
        place = max(0, bisect_right(self._blocks, time_us, key=lambda block: block.first_us) - 1)
        block = self._blocks[place]
        ticks = block.ticks()
        at = bisect_right(ticks, time_us, key=lambda tick: tick[0])
        if at and ticks[at - 1][0] == time_us:
            return False
        ticks.insert(at, (time_us, wire))
        if len(ticks) >= 2 * BLOCK:
            self._blocks.insert(place + 1, _Block(ticks[BLOCK:]))
            self._blocks[place + 1].shut()
            ticks = ticks[:BLOCK]
        block.hold(ticks)
        self._turn_to(block)
        self.size += len(wire)
        return True

    def _turn_to(self, block: _Block | None) -> None:
        if self._open is not None and self._open is not block:
            self._open.shut()
        self._open = block

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
            self._times.pop(0)
            self.size -= len(self._recent.pop(0))

    def _since(self, span_us: float) -> float:
        return self._times[-1] - min(span_us, self._kept_us) if self._times else 0.0

    def last(self, span_us: float) -> list[bytes]:
        """Ticks of the last so many microseconds before the newest, which is always among them, in order of time."""
        since = self._since(span_us)
        return [wire for time_us, wire in self._every(since) if time_us >= since]

    def _every(self, since: float) -> Iterator[Tick]:
        for block in self._blocks:
            if block.last_us >= since:
                yield from block.ticks()
        yield from zip(self._times, self._recent, strict=True)

    def at(self, time_us: int) -> bytes | None:
        """The newest tick at or before a moment; None when none is kept from then."""
        held: Sequence[Tick] = ()
        if self._times and time_us >= self._times[0]:
            held = list(zip(self._times, self._recent, strict=True))
        elif place := bisect_right(self._blocks, time_us, key=lambda block: block.first_us):
            held = self._blocks[place - 1].ticks()
        at = bisect_right(held, time_us, key=lambda tick: tick[0])
        if not at or held[at - 1][0] < self._since(self._kept_us):
            return None
        return held[at - 1][1]
