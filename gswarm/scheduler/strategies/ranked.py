"""Entries taken out least first, of which a million may wait: `(-priority, order, number, what)`, no two of one number.

A heap of very many jumps through memory at each step, and most of what comes is in order already. So once there are more
than `FEW`, they are sorted into a run that is taken from its end; what comes then and belongs after the run is only set
aside, and what belongs into it, as what follows tasks that end, goes to a heap that stays small.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

FEW = 512
"""Entries of which a heap lies close together in memory."""
T = TypeVar("T")
NO_END = (float("inf"),)
"""After every entry."""


class Ranked(Generic[T]):
    """See the module's docstring."""

    __slots__ = ("_end", "_heap", "_later", "_run")

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, T]] = []
        self._run: list[tuple[int, float, int, T]] = []
        """Sorted, least last."""
        self._later: list[tuple[int, float, int, T]] = []
        """Those after `_end`, in any order; all others are in the heap or the run."""
        self._end: tuple[float, ...] | tuple[int, float, int, T] = NO_END

    def push(self, entry: tuple[int, float, int, T]) -> None:
        """Put it where it belongs."""
        if entry > self._end:
            self._later.append(entry)
        else:
            heappush(self._heap, entry)

    def top(self) -> tuple[int, float, int, T] | None:
        """The least; None: there is none."""
        run, heap = self._run, self._heap
        if run:
            entry = run[-1]
            return heap[0] if heap and heap[0] < entry else entry
        if not heap:
            if not self._later:
                return None
            self._heap = heap = self._later
            self._later, self._end = [], NO_END
            heapify(heap)
        if len(heap) > FEW:
            heap.sort(reverse=True)
            self._run, self._heap = heap, run
            if not self._later:
                self._end = heap[0]
            return heap[-1]
        return heap[0]

    def pop(self) -> tuple[int, float, int, T]:
        """Take the least out; there is one."""
        run, heap = self._run, self._heap
        if run:
            return heappop(heap) if heap and heap[0] < run[-1] else run.pop()
        if not heap or len(heap) > FEW:
            self.top()
            return self.pop()
        return heappop(heap)

    def clear(self) -> None:
        """Take all out."""
        self._heap.clear()
        if self._end is not NO_END:
            self._run.clear()
            self._later.clear()
            self._end = NO_END
