"""A fixed placement sized to the mix of work: what is loaded stays, so nothing switches; first come within each model.

Every model that has work gets one set of GPUs, then the one with the most work a set gets another, while there are
GPUs. If the models do not all fit, those with the most work a GPU keep sets of their own, and the others share the
remaining GPUs first come with affinity (they switch, as they must).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gswarm.scheduler.strategies.listing import ListStrategy, Set
from gswarm.scheduler.strategy import Job


class Static(ListStrategy):
    """See the module's docstring. The mix is what an operator knows: GPU-seconds per model."""

    name = "static"

    def __init__(self, *, reasons: bool = False) -> None:
        super().__init__(reasons=reasons)
        self._mix: dict[str, float] = {}
        self._sets: dict[str, list[Set]] = {}
        self._pool: list[str] = []
        self._lines_of: dict[str, deque[Job]] = {}
        self._shared: deque[Job] = deque()
        self._is_sized = False

    def size_to(self, mix: dict[str, float]) -> None:
        """Take in how many GPU-seconds there are of each model."""
        self._mix = mix

    def decide(self, now: float) -> None:
        """Serve each model's line, and the shared one, while there are GPUs for its head."""
        if any(d not in self.number for m in self.models.values() for d in m.devices):
            return  # what is fixed is sized to all GPUs, also to those that come free later
        if not self._is_sized:
            self._size()
        while self.ready:
            job = self.ready.popleft()
            if job.model in self._sets:
                self._lines_of.setdefault(job.model, deque()).append(job)
            else:
                self._shared.append(job)
        for model, line in self._lines_of.items():
            for devices in self._sets[model]:
                if line and all(not self._lines[d] for d in devices):
                    self.give(line.popleft(), devices, f"{model} is fixed there")
        self._serve_shared()

    def _serve_shared(self) -> None:
        while self._shared:
            model = self.models[self._shared[0].model]
            free = [d for d in self._pool if not self._lines[d] and d in model.devices]
            held = [s for d in free if (s := self.placement.get(d, ("", ()))[1]) and self.holds(model.name, s)]
            idle = [s for s in held if all(not self._lines[d] for d in s)]
            if not idle and len(free) < model.width:
                return
            devices = idle[0] if idle else tuple(free[: model.width])
            self.give(self._shared.popleft(), devices, f"{model.name} has no set of its own: shared GPUs")

    def _size(self) -> None:
        """Divide the devices."""
        self._is_sized = True
        work, width = self._mix, {m: self.models[m].width for m in self._mix}
        order = sorted(work, key=lambda m: (-work[m] / width[m], m))
        free = list(self.devices)
        fixed = len(order)
        while fixed and sum(width[m] for m in order[:fixed]) + self._widest(order[fixed:]) > len(free):
            fixed -= 1
        for m in order[:fixed]:
            self._fix(m, free)
        spare = self._widest(order[fixed:])
        while wanting := [m for m in order[:fixed] if self._room(m, free) and width[m] + spare <= len(free)]:
            self._fix(max(wanting, key=lambda m: work[m] / (width[m] * len(self._sets[m]))), free)
        self._pool = free

    def _widest(self, models: Sequence[str]) -> int:
        return max((self.models[m].width for m in models), default=0)

    def _room(self, model: str, free: list[str]) -> bool:
        return sum(d in self.models[model].devices for d in free) >= self.models[model].width

    def _fix(self, model: str, free: list[str]) -> None:
        if not self._room(model, free):
            return
        devices = tuple(sorted([d for d in free if d in self.models[model].devices][: self.models[model].width]))
        for d in devices:
            free.remove(d)
        self._sets.setdefault(model, []).append(devices)
