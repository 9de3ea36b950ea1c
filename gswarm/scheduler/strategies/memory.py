"""Host memory as a strategy keeps account of it: what sleeps there, what is worth putting there, what gives way to it.

A model that leaves its GPUs is put to sleep if that way and back is shorter than to unload and load it again, and if it
fits beside what is worth more there. Worth is the time that a waking saves, times how often the model has been asked
for, a byte. Where no one was told of host memory nothing sleeps, and this costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from gswarm.scheduler.problem import BYTES_PER_GB, UNLOAD_GB_PER_S
from gswarm.scheduler.strategy import Drop, Instruction, Model, Unload


def unload_s(model: Model) -> float:
    """Seconds that a GPU takes to give up the model's memory."""
    return model.memory / BYTES_PER_GB / UNLOAD_GB_PER_S


class Host:
    """See the module's docstring. `asked` says how often a model has been asked for, in any unit."""

    def __init__(self, asked: Callable[[str], float]) -> None:
        self.room = 0
        """Bytes that there are; 0: nothing sleeps."""
        self._asked = asked
        self._asleep: Counter[str] = Counter()
        self._models: dict[str, Model] = {}
        self._going: dict[str, str] = {}
        """Servers that were told to go to sleep, and their models; they are counted as asleep."""

    def load_s(self, model: Model) -> float:
        """What it takes to bring the model up on empty GPUs: to wake it where it sleeps."""
        return model.wake_s if self._asleep[model.name] and model.wake_s is not None else model.load_s

    def away_s(self, model: Model) -> float:
        """About how long the model takes to leave its GPUs."""
        return model.sleep_s if self._saved_s(model) > 0 and model.sleep_s is not None else unload_s(model)

    def _saved_s(self, model: Model) -> float:
        if not self.room or model.sleep_s is None or model.wake_s is None:
            return 0.0
        return unload_s(model) + model.load_s - model.sleep_s - model.wake_s

    def _worth(self, model: Model) -> float:
        return self._saved_s(model) * self._asked(model.name) / max(1, model.memory * model.width)

    def send_away(self, server: str, model: Model | None, reason: str, out: list[Instruction]) -> None:
        """End a server or put it to sleep, and drop what gives way to it."""
        sleeps = model is not None and self.room > 0 and self._make_room(model, out)
        if sleeps and model is not None:
            self._asleep[model.name] += 1
            self._going[server] = model.name
        out.append(Unload(server, reason, sleep=sleeps))

    def _make_room(self, model: Model, out: list[Instruction]) -> bool:
        size = model.memory * model.width
        if self._saved_s(model) <= 0 or size > self.room:
            return False
        self._models[model.name] = model
        free = self.room - sum(n * self._size(name) for name, n in self._asleep.items())
        dropped: list[str] = []
        if free < size:
            worth = self._worth(model)
            fixed = Counter(self._going.values())
            sleeping = [(self._worth(self._models[name]), name) for name, n in (self._asleep - fixed).items() if n]
            for other, name in sorted(sleeping):
                while free < size and other < worth and self._asleep[name] - fixed[name] > dropped.count(name):
                    dropped.append(name)
                    free += self._size(name)
            if free < size:
                return False
        for name in dropped:
            self._asleep[name] -= 1
            out.append(Drop(name, f"makes room for {model.name}"))
        return True

    def _size(self, name: str) -> int:
        model = self._models[name]
        return model.memory * model.width

    def gone(self, server: str, asleep: bool) -> str:
        """A server is no more. The name of its model if that was to go to sleep; else empty."""
        name = self._going.pop(server, "")
        if name and not asleep:
            self._asleep[name] = max(0, self._asleep[name] - 1)
        return name

    def brought_up(self, model: str) -> bool:
        """The model is being loaded: whether it was asleep, and wakes now."""
        if not self._asleep[model]:
            return False
        self._asleep[model] -= 1
        return True
