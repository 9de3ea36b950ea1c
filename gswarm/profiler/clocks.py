"""One time axis for many clocks: the offset of each node's from when its ticks arrived, and jumps of the host's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AGREES_US = 200_000
"""A clock nearer than this to the host's is taken as it is: the rest may be the way of the tick, not the clock."""
JUMP_US = 2_000_000
STEADY_US = 500_000
CONFIRMED = 3
"""So many ticks in a row must be late by the same amount before the clock, not the network, is held to be it."""
WINDOW = 64
"""Ticks of which the fastest tells the offset; short enough to follow a clock that drifts."""


HOST_JUMP_US = 5_000_000
"""The host stamps a change, then commits and records it: what is further apart than this is held to be its clock.

A disk that stalls for longer is taken for one too: what was stamped before the stall is then shown when it was recorded, that
much later, and nothing after it is. That the next change says the same would tell nothing: changes are committed in groups.
"""
NOT_RUNNING = b"the host was not running"
"""The gap between two runs of the host. The second has a clock of its own: what was known of the first one's is over."""


class HostClock:
    """Host time that never goes back, whatever is done to the machine's clock; microseconds since the epoch."""

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        """Now."""
        return time.monotonic_ns() // 1000 + self._offset_us

    def after(self, time_us: int) -> None:
        """Go on after what an earlier run of the host wrote, also when the clock was set back meanwhile."""
        self._offset_us += max(0, time_us - self.now_us())


def host_offset(recorded_us: int, stamped_us: int) -> int:
    """What to add to the host's stamps of a change to have them on the recording's axis, which its clock does not move."""
    apart = recorded_us - stamped_us
    return apart if abs(apart) > HOST_JUMP_US else 0


def offsets(
    seqs: Sequence[int], node_us: NDArray[np.int64], arrived_us: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[tuple[int, int], ...]]:
    """What to add to each tick of one node, in order of arrival, to have it in host time.

    Microseconds; also the changes, as (arrival of the first tick with it, offset). A tick that comes after a newer one was
    held back by a cut, so when it came says nothing of its clock. The offset is the least delay of a window of ticks:
    Cristian's algorithm, where the shortest way errs least (Cristian 1989, Probabilistic clock synchronization).
    """
    import numpy as np

    found = np.zeros(len(seqs), np.int64)
    if not len(seqs):
        return found, ()
    order = np.asarray(seqs, np.uint64)
    live = np.concatenate(([True], order[1:] > order[:-1]))
    at = np.flatnonzero(live)
    delays = (arrived_us - node_us)[at]
    per_live = np.empty(len(at), np.int64)
    edges = [0, *_jumps(delays.tolist()), len(at)]
    for first, end in pairwise(edges):
        for start in range(first, end, WINDOW):
            part = slice(start, min(start + WINDOW, end))
            least = int(delays[part].min())
            per_live[part] = 0 if abs(least) < AGREES_US else least
    # A tick that was held back has the offset of the live one before it.
    found[:] = per_live[np.maximum(np.cumsum(live) - 1, 0)]
    changes = np.flatnonzero(np.concatenate(([True], found[1:] != found[:-1])))
    return found, tuple((int(arrived_us[i]), int(found[i])) for i in changes)


def _jumps(delays: list[int]) -> list[int]:
    """Where a clock was set: later than its offset by the same amount several times in a row, or suddenly earlier."""
    found: list[int] = []
    least = delays[0]
    index = 1
    while index < len(delays):
        delay = delays[index]
        following = delays[index : index + CONFIRMED]
        if delay < least - JUMP_US:
            # Nothing arrives before it was sent: the clock was set forward (or told wrongly until now).
            found.append(index)
            least = delay
        elif delay > least + JUMP_US and max(following) - min(following) < STEADY_US:
            found.append(index)
            least = delay
        else:
            least = min(least, delay)
        index += 1
    return found
