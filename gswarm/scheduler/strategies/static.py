"""A fixed placement sized to the mix of work: what is loaded stays, so nothing switches; first come within each model.

Every model that has work gets one set of GPUs, then the one with the most work a set gets another, while there are
GPUs. If the models do not all fit, those with the most work a GPU keep sets of their own, and the others share the
remaining GPUs first come with affinity (they switch, as they must).
"""

from __future__ import annotations

from collections import Counter, deque
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
        work, order = self._mix, sorted(self._mix, key=lambda m: (-self._mix[m] / self.models[m].width, m))
        takers = Counter(d for m in self.models.values() for d in m.devices)
        devices = sorted(self.devices, key=lambda d: takers[d])  # those that few fit on first: the others are for all
        for count in range(len(order), -1, -1):
            self._sets, self._pool = {}, devices
            if all(self._fix(m) for m in order[:count]) and self._have_room(order[count:]):
                break
        growing = order[:count]
        while growing:
            most = max(growing, key=lambda m: work[m] / (self.models[m].width * len(self._sets[m])))
            before = self._pool
            if not self._fix(most):
                growing.remove(most)
            elif not self._have_room(order[count:]):
                self._sets[most].pop()
                self._pool = before
                growing.remove(most)

    def _have_room(self, others: Sequence[str]) -> bool:
        """Whether each of them fits on what is left."""
        return all(sum(d in self.models[m].devices for d in self._pool) >= self.models[m].width for m in others)

    def _fix(self, name: str) -> bool:
        """Give the model a set of its own of what is left, if there is one."""
        model = self.models[name]
        able = [d for d in self._pool if d in model.devices]
        if len(able) < model.width:
            return False
        chosen = able[: model.width]
        self._pool = [d for d in self._pool if d not in chosen]
        self._sets.setdefault(name, []).append(tuple(sorted(chosen)))
        return True
