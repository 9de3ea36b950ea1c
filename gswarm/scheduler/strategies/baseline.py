"""First come with affinity among idle GPUs, as Ray and its like do: where the model is idle, else the first free GPUs."""

from __future__ import annotations

from gswarm.scheduler.strategies.listing import ListStrategy, Set


class Baseline(ListStrategy):
    """See the module's docstring. Strictly in order: the head of the line is not passed over."""

    name = "baseline"

    def decide(self, now: float) -> None:
        """Serve the head of the line while there are GPUs for it."""
        while self.ready:
            model = self.models[self.ready[0].model]
            if (held := self._idle_placement(model.name)) is not None:
                self.give(self.ready.popleft(), held, f"{model.name} is loaded there")
            elif (free := self.first_free(model)) is not None:
                self.give(self.ready.popleft(), free, f"{model.name} is idle nowhere: the first free")
            else:
                return

    def _idle_placement(self, model: str) -> Set | None:
        for n in self.idle:
            model_there, devices = self.placement.get(self.devices[n], ("", ()))
            if model_there == model and all(self._is_idle(d) and self.holds(model, devices) for d in devices):
                return devices
        return None

    def _is_idle(self, device: str) -> bool:
        return device in self._lines and not self._lines[device]
