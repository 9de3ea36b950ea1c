"""How often a node is sampled: at regular times, and between two bounds as its values move. No clock and no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gswarm.profiler.metrics import Absent, Reading

GIB = 1 << 30
WATCHED: dict[str, tuple[float, float]] = {
    "gpu_util_percent": (5.0, 0.2),
    "power_mw": (10_000.0, 0.1),
    "memory_used_bytes": (0.25 * GIB, 0.05),
}
"""What moves when a device gets work: a change counts from so much in the metric's unit, or this share of its level."""
STAYS_AWAKE = 0.5
"""Hysteresis: while sampling is at its fastest, this part of a change is enough to keep it there."""
EASE = 0.25
"""How far a level goes towards each value that is no change."""
EARLY_S = 0.025
"""A timer may fire a little before its time: what is sampled so long before its moment is the sample of that moment."""


@dataclass(slots=True)
class Pace:
    """How many steps of the fastest interval pass until the next sample.

    The rule: each watched metric of each device has a level. A value that is further from it than WATCHED allows, one that
    comes, or one that goes, is a change: the level jumps there, and the pace is one step at once. Without any change
    levels ease towards the values, and the pace slows by half of itself, from one step to two at first, up to the slowest.
    """

    fastest_s: float
    slowest_s: float
    steps: int = 1
    _levels: dict[tuple[int, str], float | None] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """Steps of the slowest pace."""
        return max(1, math.floor(self.slowest_s / self.fastest_s + 1e-6))

    def observe(self, readings: Sequence[Reading | Absent]) -> None:
        """Take in a sample of all devices that count, always in the same order."""
        part = STAYS_AWAKE if self.steps == 1 else 1.0
        changed = [
            self._is_change((row, name), None if isinstance(reading, Absent) else reading.get(name), part)
            for row, reading in enumerate(readings)
            for name in WATCHED
        ]
        self.steps = 1 if any(changed) else min(self.most, self.steps + max(1, self.steps // 2))

    def _is_change(self, key: tuple[int, str], value: object, part: float) -> bool:
        now = float(value) if isinstance(value, int | float) else None
        is_known, level = key in self._levels, self._levels.get(key)
        if now is None or level is None:
            self._levels[key] = now
            return not is_known or now is not level
        floor, share = WATCHED[key[1]]
        if abs(now - level) > part * max(floor, share * abs(level)):
            self._levels[key] = now
            return True
        self._levels[key] = level + EASE * (now - level)
        return False


@dataclass(slots=True)
class Schedule:
    """When the next sample is due. Times are seconds of the wall clock: nodes in one phase slot sample together."""

    regular_s: float = 1.0
    """Every so often in any case; 0: only at the pace."""
    phase_s: float = 0.0
    pace: Pace | None = None
    sampled_at: float = 0.0

    def due(self, now: float) -> float:
        """The next time after now. A clock that was set back delays nothing by more than the interval."""
        found = math.inf
        if self.regular_s:
            found = self._slot(now, self.regular_s) * self.regular_s + self.regular_s + self.phase_s
        if self.pace is not None:
            step = self.pace.fastest_s
            here = self._slot(now, step)
            slot = min(self._slot(self.sampled_at, step), here) + self.pace.steps
            found = min(found, max(slot, here + 1) * step + self.phase_s)
        return found

    @property
    def shortest_s(self) -> float:
        """The shortest interval there may be between two samples."""
        asked = [self.regular_s, 0.0 if self.pace is None else self.pace.fastest_s]
        return min(interval for interval in asked if interval)

    def _slot(self, at: float, step: float) -> int:
        return math.floor((at - self.phase_s + EARLY_S) / step)

    def adapt(self, fastest_s: float, slowest_s: float) -> None:
        """Sample between these bounds too; 0, 0: no longer. What is known of the levels stays while they do."""
        if not fastest_s or slowest_s <= fastest_s:
            self.pace = None
        elif self.pace is None or (self.pace.fastest_s, self.pace.slowest_s) != (fastest_s, slowest_s):
            self.pace = Pace(fastest_s, slowest_s)
