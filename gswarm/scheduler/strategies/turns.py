"""Ready jobs in the order in which they became ready, and how often each was passed over by later ones."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

PASSES_PER_GPU, PASSES_PER_WAITING = 64, 2
"""How often a ready job may be passed over unless told otherwise: a GPU, and a job of the longest line there was.

Were it less than the line is long, all of a long line would have been passed over so often before its turn comes, and
first come, first served would be all that is left.
"""
BLOCK, GROUP = 128, 32
"""Numbers whose leavings are summed up together; blocks whose sums are."""
KEPT = BLOCK * GROUP
"""Numbers below that of the oldest one that are kept before they are forgotten all at once."""


class Numbered(Protocol):
    """A job in line."""

    number: int
    """The how-manyth to become ready; -1: in no line."""


T = TypeVar("T", bound=Numbered)


class Turns(Generic[T]):
    """Jobs get numbers when they become ready.

    A job is passed over once for each job with a higher number that leaves the line before it. Numbers below that of
    the oldest one in line have all left, so its passes are a subtraction; others take a sum over blocks of numbers.
    A job that has left is let go of at once, however long an older one stays.
    The oldest one is passed over most: whoever passes over another one has a higher number than the oldest one too.
    """

    def __init__(self) -> None:
        self._line: list[T | None] = []
        """By number less `_offset`, as the next: who is in line; None: has left."""
        self._left = bytearray()
        """Whether it has left."""
        self._blocks: list[int] = []
        self._groups: list[int] = []
        """How many have left, per block and per group of numbers."""
        self._offset = self._first = 0
        """The first number that is kept; that of the oldest one in line, or the next one where no one is."""
        self._count_left = 0
        self.most_passed = 0
        """How often the oldest one was passed over, and so the most that any one was; 0 when no one is in line."""
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
        if not len(left) % BLOCK:
            self._blocks.append(0)
            if not len(left) % KEPT:
                self._groups.append(0)
        left.append(0)

    def leave(self, job: T) -> int:
        """It starts, or is taken away: how often it was passed over."""
        passed = self.passed(job)
        number = job.number
        at = number - self._offset
        left = self._left
        left[at] = 1
        self._line[at] = None
        self._blocks[at // BLOCK] += 1
        self._groups[at // KEPT] += 1
        self._count_left += 1
        if number == self._first:
            at = left.find(0, at)
            if at < 0:
                at = len(left)
                self.longest = 0
            self._first = self._offset + at
            if at >= KEPT:
                groups = at // KEPT
                del left[: groups * KEPT], self._line[: groups * KEPT]
                del self._blocks[: groups * GROUP], self._groups[:groups]
                self._offset += groups * KEPT
        self.most_passed = self._count_left - self._first
        return passed

    def allowed(self, gpus: int) -> int:
        """How often a job may be passed over unless told otherwise."""
        return max(PASSES_PER_GPU * max(1, gpus), PASSES_PER_WAITING * self.longest)

    @property
    def oldest(self) -> T | None:
        """Who is ready longest."""
        return self._line[self._first - self._offset] if self._first < self._next else None

    def passed(self, job: T) -> int:
        """How often it was passed over."""
        number = job.number
        if number == self._first:
            return self._count_left - number
        at = number - self._offset
        block, group = at // BLOCK, at // KEPT
        below = self._offset + self._left.count(1, block * BLOCK, at)
        if group:
            below += sum(self._groups[:group])
        if block:
            below += sum(self._blocks[group * GROUP : block])
        return self._count_left - below
