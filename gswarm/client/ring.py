"""Samples that the host has not acknowledged: a bounded memory, newest first after a cut, losses marked."""

from __future__ import annotations

from collections import OrderedDict, deque

from gswarm.v1 import profiler_pb2

LIMIT_BYTES = 64 << 20
OVERHEAD_BYTES = 64


class Ring:
    """Ticks by number: those waiting to be sent, and those sent on this connection but not acknowledged.

    The oldest fall out when it is full. How many did is told by the `gap` of the next older one that goes out.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self._waiting: deque[profiler_pb2.SampleTick] = deque()
        """Ascending numbers: sent from the right, dropped from the left."""
        self._sent: OrderedDict[int, profiler_pb2.SampleTick] = OrderedDict()
        """In the order of sending."""
        self._unsure = 0
        """Dropped after they were sent: lost only if the connection breaks before the host says it has them."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def add(self, tick: profiler_pb2.SampleTick) -> None:
        """Keep a tick."""
        self._waiting.append(tick)
        self.size += _size(tick)
        while self.size > self.limit and len(self) > 1:
            self._drop()

    def _drop(self) -> None:
        if self._sent:
            _, gone = self._sent.popitem(last=False)
            self._unsure += 1 + gone.gap
        else:
            gone = self._waiting.popleft()
            self._waiting[0].gap += 1 + gone.gap
        self.size -= _size(gone)

    def next(self) -> profiler_pb2.SampleTick | None:
        """What to send now: the newest that waits. It counts as sent."""
        if not self._waiting:
            return None
        tick = self._waiting.pop()
        self._sent[tick.seq] = tick
        return tick

    def acknowledge(self, seq: int) -> None:
        """The host has tick `seq` and all that were sent before it."""
        if seq not in self._sent:
            return  # acknowledged already, or dropped
        self._unsure = 0
        while self._sent:
            number, tick = self._sent.popitem(last=False)
            self.size -= _size(tick)
            if number == seq:
                return

    def reconnected(self) -> None:
        """The connection broke: nothing that was not acknowledged is known to have arrived."""
        every = sorted((*self._sent.values(), *self._waiting), key=lambda tick: tick.seq)
        self._sent.clear()
        self._waiting = deque(every)
        if every:
            every[0].gap += self._unsure
            self._unsure = 0


def _size(tick: profiler_pb2.SampleTick) -> int:
    """What a tick is taken to weigh; its `gap` is left out, for it changes while the tick is kept."""
    return len(tick.f32) + len(tick.i32) + len(tick.u64) + OVERHEAD_BYTES + 32 * len(tick.absent)
