"""Ready jobs in the order in which they became ready, and how often each was passed over by later ones."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

PASSES_PER_GPU, PASSES_PER_WAITING = 64, 2
"""How often a ready job may be passed over unless told otherwise: a GPU, and a job of the longest line there was.

Were it less than the line is long, all of a long line would have been passed over so often before its turn comes, and
first come, first served would be all that is left.
"""
BLOCK = 1024
"""Numbers whose leavings are summed up together."""


class Numbered(Protocol):
    """A job in line."""

    number: int
    """The how-manyth to become ready; -1: in no line."""


T = TypeVar("T", bound=Numbered)


class Turns(Generic[T]):
    """Jobs get numbers when they become ready.

    A job is passed over once for each job with a higher number that leaves the line before it. Numbers below that of
    the oldest one in line have all left, so its passes are a subtraction; others take a sum over blocks of numbers.
    The oldest one is passed over most: whoever passes over another one has a higher number than the oldest one too.
    """

    def __init__(self) -> None:
        self._line: deque[T] = deque()
        """Those in line, and some that have left."""
        self._left = bytearray()
        """By number less `_offset`: whether it has left."""
        self._blocks: list[int] = []
        """How many have left, per block of numbers."""
        self._offset = 0
        self._count_left = 0
        self.longest = 0
        """The most that were in line at once since it was last empty."""
        self._next = 0

    def join(self, job: T) -> None:
        """It is ready now."""
        job.number = self._next
        self._next += 1
        self._line.append(job)
        waiting = self._next - self._count_left
        if waiting > self.longest:
            self.longest = waiting
        left = self._left
        left.append(0)
        if len(left) > len(self._blocks) * BLOCK:
            self._blocks.append(0)

    def leave(self, job: T) -> None:
        """It starts, or is taken away."""
        at = job.number - self._offset
        left = self._left
        left[at] = 1
        self._blocks[at // BLOCK] += 1
        self._count_left += 1
        line = self._line
        if line[0] is job:
            offset = self._offset
            line.popleft()
            while line and left[line[0].number - offset]:
                line.popleft()
            blocks = ((line[0].number if line else self._next) - offset) // BLOCK
            if not line:
                self.longest = 0
            if blocks >= 16:
                del left[: blocks * BLOCK], self._blocks[:blocks]
                self._offset += blocks * BLOCK

    def allowed(self, gpus: int, least: int = 0) -> int:
        """How often a job may be passed over unless told otherwise."""
        return max(PASSES_PER_GPU * max(1, gpus), PASSES_PER_WAITING * self.longest, least)

    @property
    def oldest(self) -> T | None:
        """Who is ready longest."""
        return self._line[0] if self._line else None

    @property
    def most_passed(self) -> int:
        """How often the oldest one was passed over, and so the most that any one was; 0 when no one is in line."""
        return self._count_left - self._line[0].number if self._line else 0

    def passed(self, job: T) -> int:
        """How often it was passed over."""
        line = self._line
        if line and line[0] is job:
            return self._count_left - job.number
        at = job.number - self._offset
        block = at // BLOCK
        below = self._offset + sum(self._blocks[:block]) + self._left.count(1, block * BLOCK, at)
        return self._count_left - below
