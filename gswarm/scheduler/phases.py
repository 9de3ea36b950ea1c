"""Models that run beside no other: what one placement of such a model, and so a before and an after, would cost.

Let w be a model that leaves too few GPUs for any other, L its load and W its work. While it is placed nothing else is. If
it is placed once only, then every task that one of w's tasks waits for ends before, every task that waits for one of
w's begins after, and no other placement lasts from before to after. With a seconds before and b after, T = a + L + W + b
at least (and the soonest unload, if anything is before): each side must have the placements that its own tasks
need, loaded within a or b, and the GPU-seconds of both and of all other tasks must fit N (a + b).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Bools, Floats, Ints, Model, Problem

SLACK = 1e-9
"""Seconds that count as none."""
CELLS = 256
"""Parts that the time beside w's is cut into; of each the best for either side counts."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One such model, and the others' columns: work that must be before and after it, and the rest."""

    model: int
    seconds: float
    """L + W, with the unload before it."""
    before: Floats
    after: Floats
    rest: Floats
    width: Floats
    load: Floats
    unload: float
    """The soonest, which every placement after w waits for: it takes GPUs that held w, or what came after it."""
    is_split: bool
    """Whether a task must be both before and after, so that one placement is not enough."""

    def fits(self, t: float, gpus: int) -> bool:
        """Whether a plan with one placement of it may end by `t`."""
        beside = t - self.seconds
        if self.is_split or beside < 0:
            return False
        edges = np.linspace(0.0, beside, CELLS + 1)[:, None]
        a, b = edges[1:], beside - edges[:-1]  # of each cell the most that either side can have
        late = self.load + self.unload
        first, fits_first = _copies(self.before, a - self.load)
        then, fits_then = _copies(self.after, b - late)
        before, after = self.before + first * self.load, self.after + then * late
        fits = fits_first & (before @ self.width <= gpus * a[:, 0])
        fits &= fits_then & (after @ self.width <= gpus * b[:, 0])
        # What may be on either side is done by the placements there, as far as it goes, or by further ones on the better side.
        span_a, span_b = np.maximum(a - self.load, 0.0), np.maximum(b - late, 0.0)
        over = self.before + self.after + self.rest - first * span_a - then * span_b
        more, fits_more = _copies(over, np.maximum(span_a, span_b))
        taken = (before + after + self.rest + more * self.load) @ self.width
        # A GPU without any of these on one side is loaded with something more there, or idle meanwhile.
        least = float(self.load.min())
        bare_a, bare_b = (np.maximum(gpus - there @ self.width, 0.0) for there in (first, then))
        idle_a, idle_b = np.minimum(edges[:-1, 0], least), np.minimum(beside - edges[1:, 0], least)
        spared = (more @ self.width) * np.maximum(idle_a, idle_b)
        taken += np.maximum(bare_a * idle_a + bare_b * idle_b - spared, 0.0)
        return bool((fits & fits_more & (taken <= gpus * beside * (1 + 1e-12))).any())


def _copies(work: Floats, span: Floats) -> tuple[Floats, Bools]:
    """Placements of each model that the work takes, per span; and whether they can be there at all."""
    wanted = work > SLACK
    fits: Bools = np.all(~wanted | (span > 0), axis=1)
    count: Floats = np.where(wanted, np.ceil(work / np.maximum(span, 1e-12) * (1 - 1e-9)), 0.0)
    return count, fits


def phases(problem: Problem, seconds: Floats, order: list[Ints]) -> list[Phase]:
    """Of each model that runs beside no other. `order` is from `critical.levels`."""
    used = np.unique(problem.model)
    width = np.array([m.width for m in problem.models], dtype=np.float64)
    found = []
    for w in used.tolist():
        others = used[used != w]
        if not len(others) or width[w] + width[others].min() <= len(problem.gpus):
            continue
        is_w = (problem.model == w).astype(np.float64)
        is_before = critical.tails(problem, is_w, order) > 0
        is_after = critical.heads(problem, np.zeros(problem.tasks), is_w, order) > 0
        mine = problem.model == w

        def work(chosen: Bools, others: Ints = others) -> Floats:
            total: Floats = np.bincount(
                problem.model[chosen], weights=seconds[chosen], minlength=len(problem.models)
            ).astype(np.float64)
            return total[others]

        unloads = [0.0 if problem.host_memory_gb else problem.models[m].memory_gb / UNLOAD_GB_PER_S for m in used]
        load = np.array([least_load_s(problem, m) for m in problem.models])
        before = work(~mine & is_before & ~is_after)
        found.append(
            Phase(
                model=w,
                seconds=float(load[w] + seconds[mine].sum()) + (min(unloads) if before.any() else 0.0),
                before=before,
                after=work(~mine & is_after & ~is_before),
                rest=work(~mine & ~is_after & ~is_before),
                width=width[others],
                load=load[others],
                unload=min(unloads),
                is_split=bool((~mine & is_before & is_after).any()),
            )
        )
    return found


def least_load_s(problem: Problem, model: Model) -> float:
    """The least that it takes to bring a model up once it was loaded, seconds."""
    if problem.host_memory_gb and model.wake_s is not None:
        return min(model.load_s, model.wake_s)
    return model.load_s
