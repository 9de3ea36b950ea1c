"""First come, first free GPUs: the head of the line takes the first free ones by number, and all others wait for it."""

from __future__ import annotations

from gswarm.scheduler.strategies.listing import ListStrategy


class Fifo(ListStrategy):
    """See the module's docstring. What a GPU holds does not matter to it."""

    name = "fifo"

    def decide(self, now: float) -> None:
        """Serve the head of the line while there are GPUs for it."""
        while self.ready:
            devices = self.first_free(self.models[self.ready[0].model])
            if devices is None:
                return
            self.give(self.ready.popleft(), devices, "the first free")
