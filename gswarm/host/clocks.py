"""How far each node's clock is from the host's: NTP's four times from heartbeats, the quickest exchange believed."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 16
"""Exchanges looked back on, one every third heartbeat: about a minute and a half."""
SLACK_US = 50_000
"""An exchange that disagrees by more than both their errors and this says that a clock was set."""


@dataclass(frozen=True, slots=True)
class Offset:
    """A node's clock minus the host's, and how far that may be wrong, microseconds."""

    us: int
    error_us: int


@dataclass(slots=True)
class Clock:
    """The estimate of one connection."""

    _count: int = 0
    _exchanges: tuple[tuple[int, Offset], ...] = ()
    """Of the last `KEPT`, with their numbers, those that are or may yet become the best: each errs at least as far as the one
    before. That is three or four, and a node is known for long.
    """

    @property
    def offset(self) -> Offset | None:
        """The best there is; None before the first exchange."""
        return self._exchanges[0][1] if self._exchanges else None

    def exchange(self, sent_us: int, held_us: int, answered_us: int, heard_us: int) -> None:
        """Take in one: when the host sent (its clock), how long the node held it, when the node answered (the node's
        clock), when the host heard (its clock).

        RFC 5905, section 8: offset is ((T2 - T1) + (T3 - T4)) / 2 and delay (T4 - T1) - (T3 - T2); the truth is within half
        the delay, whichever way the delay went. What cannot be, for a clock was set in between or a peer tells
        nonsense, is left out.
        """
        delay = heard_us - sent_us - held_us
        if held_us < 0 or delay < 0 or sent_us <= 0 or answered_us <= 0:
            return
        arrived_us = answered_us - held_us
        found = Offset((arrived_us - sent_us + answered_us - heard_us) // 2, delay // 2 + 1)
        best = self.offset
        if best is not None and abs(found.us - best.us) > found.error_us + best.error_us + SLACK_US:
            self._exchanges = ()
        self._count += 1
        oldest = self._count - KEPT
        kept = [(n, e) for n, e in self._exchanges if n > oldest and e.error_us <= found.error_us]
        self._exchanges = (*kept, (self._count, found))
