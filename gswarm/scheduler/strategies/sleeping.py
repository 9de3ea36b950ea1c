"""A greedy pass in which what is given up may go to sleep in host memory, to be woken later in place of a load."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from gswarm.scheduler.problem import SLACK_GB
from gswarm.scheduler.strategies.batching import Pass
from gswarm.scheduler.strategies.instance import NOTHING, Instance
from gswarm.scheduler.strategies.policy import Policy


class SleepingPass(Pass):
    """A model sleeps if it has work left, if that way and back is shorter than to unload and load it again, and if it
    fits beside what saves more a GB of host memory. One without work left does where that is shorter and there is room.
    """

    def __init__(self, instance: Instance, policy: Policy, *, keep: bool = False) -> None:
        # What a load takes changes while the pass runs.
        instance = copy.copy(instance)
        instance.load = instance.load.copy()
        super().__init__(instance, policy, keep=keep)
        models = instance.problem.models
        self._models = models
        self._size_gb = [m.memory_gb * m.width for m in models]
        self._saved_s = [
            unload + m.load_s - m.sleep_s - m.wake_s if m.sleep_s is not None and m.wake_s is not None else 0.0
            for m, unload in zip(models, instance.unload, strict=True)
        ]
        self._asleep = [0] * len(models)
        self._slept: set[int] = set()
        """Placements that left their GPUs by sleep."""
        self._woken: set[int] = set()

    def _is_intact(self, m: int, gpus: Sequence[int]) -> bool:
        return super()._is_intact(m, gpus) and self._last[gpus[0]] not in self._slept

    def _switched(self, m: int, gpus: Sequence[int]) -> tuple[float, float]:
        times = super()._switched(m, gpus)
        if self._asleep[m]:
            self._sleeps(m, -1)
            self._woken.add(len(self._placed))  # the placement that is made of it next
        return times

    def _unload_s(self, gpu: int) -> float:
        last = self._last[gpu]
        slept = self._models[self._placed[last]].sleep_s if last in self._slept else None
        return super()._unload_s(gpu) if slept is None else slept

    def _give_up(self, placement: int) -> None:
        super()._give_up(placement)
        m = self._placed[placement]
        if (self._used[placement] or placement in self._woken) and self._makes_room(m):
            self._sleeps(m, 1)
            if self._used[placement]:
                self._slept.add(placement)

    def _sleeps(self, m: int, change: int) -> None:
        self._asleep[m] += change
        wake_s = self._models[m].wake_s
        self._instance.load[m] = wake_s if self._asleep[m] and wake_s is not None else self._models[m].load_s

    def _makes_room(self, m: int) -> bool:
        room = self._instance.problem.host_memory_gb + SLACK_GB
        free = room - sum(n * gb for n, gb in zip(self._asleep, self._size_gb, strict=True) if n)
        if not self._has_work(m):
            sleep_s = self._models[m].sleep_s if self._models[m].can_sleep else None
            return sleep_s is not None and sleep_s < self._instance.unload[m] and self._size_gb[m] <= free
        if self._saved_s[m] <= 0 or self._size_gb[m] > room:
            return False
        dropped: list[int] = []
        for worth, other in sorted((self._worth(o), o) for o, n in enumerate(self._asleep) if n):
            while free < self._size_gb[m] and worth < self._worth(m) and dropped.count(other) < self._asleep[other]:
                dropped.append(other)
                free += self._size_gb[other]
        if free < self._size_gb[m]:
            return False
        for other in dropped:
            self._sleeps(other, -1)
        return True

    def _worth(self, m: int) -> float:
        """Seconds that waking it saves, a GB of host memory."""
        return self._saved_s[m] / max(self._size_gb[m], SLACK_GB) if self._has_work(m) else 0.0

    def _has_work(self, m: int) -> bool:
        return self._left_s[m] > NOTHING or bool(self._ready[m])
