"""Affinity list scheduling: each ready task, in order, goes to the set of GPUs on which it ends first.

Candidates are the sets that hold its model, busy or not, and the GPUs that will be free soonest. It is Graham's list
scheduling with earliest finish (Topcuoglu et al., HEFT, 2002, without its ranks) and loads as setup times.
"""

from __future__ import annotations

from gswarm.scheduler.strategies.listing import ListStrategy, Set
from gswarm.scheduler.strategy import Job


class Affinity(ListStrategy):
    """See the module's docstring. It expects what it is told of run times; when they are off, so is the order."""

    name = "affinity"

    def __init__(self, *, reasons: bool = False) -> None:
        super().__init__(reasons=reasons)
        self._free_at: dict[str, float] = {}
        self._sets: dict[str, dict[Set, None]] = {}
        """Sets that were given to a model and may hold it still."""

    def decide(self, now: float) -> None:
        """Give every ready task away at once."""
        while self.ready:
            job = self.ready[0]
            found = self._candidates(now, job)
            if not found:
                return
            self.ready.popleft()
            ends, _, devices = min(found)
            self.give(job, devices, "" if not self.reasons else _why(found))
            self._sets.setdefault(job.model, {})[devices] = None
            for d in devices:
                self._free_at[d] = ends

    def _candidates(self, now: float, job: Job) -> list[tuple[float, bool, Set]]:
        """When it would end, whether a load is needed, where."""
        model = self.models[job.model]
        run_s = model.run_s if job.run_s is None else job.run_s
        free_at = self._free_at
        found = []
        sets = self._sets.setdefault(model.name, {})
        for devices in list(sets):
            if self.holds(model.name, devices):
                found.append((max(now, *(free_at.get(d, now) for d in devices)) + run_s, False, devices))
            else:
                del sets[devices]
        fits = frozenset(model.devices)
        able = [d for d in self.devices if d in fits]
        soonest = sorted(able, key=lambda d: max(now, free_at.get(d, now)))[: model.width]
        if len(soonest) == model.width:
            devices = tuple(sorted(soonest))
            switch_s = self.switch_s(model.name, devices)
            found.append((max(now, *(free_at.get(d, now) for d in devices)) + switch_s + run_s, switch_s > 0, devices))
        return found


def _why(found: list[tuple[float, bool, Set]]) -> str:
    shown = "; ".join(f"{'load on' if e else 'held by'} {'+'.join(s)}: ends {t:.1f}" for t, e, s in sorted(found)[:4])
    return f"ends first of {len(found)}: {shown}"
