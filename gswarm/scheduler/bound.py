"""A proven lower bound on the makespan, the best of several arguments.

Let T be the makespan of any valid plan, N the number of GPUs, and for task i: p its execution time (at the fastest GPU's
speed), k the width of its model, L the model's load time.

*Path.* A model's first load starts at t = 0 at the earliest (online: at the arrival of its first task), so no task of it
starts before L; a task starts after its predecessors end. Longest paths give each task a head h (no plan starts it
earlier) and a tail q (so much must follow its end). T >= h + p + q.

*Energy.* Take the tasks S with head >= r and tail >= q, for some r and q. They run in [r, T - q] and take
sum(k p) GPU-seconds there. Besides, a placement of model m is one load on one set of GPUs until the set is given to
something else; it runs m's tasks of S one after another between the least head and T less the least tail of those tasks,
a span s_m(T). So m needs at least c_m = ceil(sum of its p / s_m(T)) placements, each loaded for L on k GPUs. (Placements
that are there at t = 0 need no load.) With C = sum(k c_m) GPU slots:

- r = 0: every slot is loaded within [0, T - q]; a GPU can have one slot without giving up another, so C - N slots at least
  are loaded on a GPU that holds something, whose unload takes its memory / 16 GB/s: at least the least memories, summed.
- r > 0: at time r each GPU holds one placement at the most, so C - N slots at least are loaded after r: at least the
  shortest loads, summed.

T is too small where this exceeds N (T - q - r) GPU-seconds. As T grows the need falls and the room grows, so the least T
that is not too small is found by bisection. Thresholds r and q are tried over the quantiles of heads and tails; every
pair is a bound of its own, and so is their maximum.

Energetic reasoning: Baptiste, Le Pape, Nuijten, "Satisfiability tests and time-bound adjustments for cumulative
scheduling problems", Annals of Operations Research 92 (1999). The count of placements is the bin-covering argument of
batch scheduling with family setups: Monma and Potts, "On the complexity of scheduling with batch setup times",
Operations Research 37 (1989).

Relaxed where a problem uses the optional parts: several models on a GPU give unloads no price and slots no limit, and a
placement takes but the share of a GPU that it takes of the largest one's memory; a model
that can sleep is loaded once, if it is not there at t = 0, and woken otherwise, and a GPU is rid of it by unload or sleep,
whichever is shorter; GPUs that are free later give less room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Floats, Ints, Model, Problem

THRESHOLDS = 24
"""Heads and tails that are tried, each; beyond it the bound hardly grows."""
PRECISION, ROUGHLY = 1e-9, 1e-4
"""Relative; bisection stops below it, on the side that is too small."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` seconds; `parts` are the arguments it is the best of, by name."""

    value: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Family:
    """What a set of tasks asks of the GPUs, per model."""

    work: Floats
    """Execution seconds on one placement."""
    head: Floats
    tail: Floats
    slots: Floats
    """GPUs a placement takes; where several models are on one, the share of their memory that it takes."""
    load: Floats
    """Or waking, for a model that can sleep."""
    more: Floats
    """How much longer the first load takes where nothing is there at t = 0, for nothing sleeps then."""
    clear: Floats
    """Seconds to rid a GPU of it: unload, or sleep where that is shorter."""
    held: Floats
    """Placements that are there at t = 0."""


def lower_bound(problem: Problem, *, online: bool = False, windows: bool = True) -> Bound:
    """No valid plan of `problem` ends before `value`. Offline arrivals are ignored, as in `problem.offline()`.

    Without `windows` the thresholds are only r = q = 0, and bisection stops early: nearly as good, in no time.
    """
    if not problem.tasks:
        return Bound(0.0, {})
    if not online and (problem.arrivals.any() or problem.release.any()):
        problem = problem.offline()
    order = critical.levels(problem)
    seconds = problem.seconds / max(g.speed for g in problem.gpus)
    base = np.maximum(_first_start(problem), problem.release)
    for running in problem.running:
        base[running.task], seconds[running.task] = 0.0, running.end
    head = critical.heads(problem, base, seconds, order)
    tail = critical.tails(problem, seconds, order)
    parts = {"path": float((head + seconds + tail).max())}
    best = parts["path"]
    energy = _least(problem, seconds, head, tail, 0.0, 0.0, 0.0, PRECISION if windows else ROUGHLY)
    parts["work and loads"] = energy
    best = max(best, energy)
    if not windows:
        return Bound(best, parts)
    heads_tried, tails_tried = _quantiles(head), _quantiles(tail)
    pairs = [(r, q) for r in heads_tried for q in tails_tried if r > 0 or q > 0]
    within = energy
    for r, q in pairs:
        within = max(within, _least(problem, seconds, head, tail, r, q, max(best, within)))
    parts["work within heads and tails"] = within
    return Bound(max(best, within), parts)


def _first_start(problem: Problem) -> Floats:
    """Per task: when its model can be loaded for the first time."""
    models = len(problem.models)
    earliest = np.full(models, np.inf)
    np.minimum.at(earliest, problem.model, problem.release)
    load = np.array([m.load_s for m in problem.models])
    load[list({p.model for p in problem.placements} | {int(problem.model[r.task]) for r in problem.running})] = 0.0
    earliest = np.maximum(earliest, min(g.free_at for g in problem.gpus))
    found: Floats = (earliest + load)[problem.model]
    return found


def _quantiles(values: Floats) -> list[float]:
    points = np.quantile(values, np.linspace(0, 1, THRESHOLDS), method="lower")
    return sorted({0.0, *points.tolist()})


def _least(
    problem: Problem,
    seconds: Floats,
    head: Floats,
    tail: Floats,
    r: float,
    q: float,
    known: float,
    precision: float = PRECISION,
) -> float:
    """The least T that the tasks with head >= r and tail >= q do not rule out; `known` if that is no more."""
    chosen = (head >= r) & (tail >= q)
    chosen[[running.task for running in problem.running]] = False
    model, work = problem.model[chosen], seconds[chosen]
    if not len(model):
        return known
    family = _family(problem, model, work, head[chosen], tail[chosen])
    low = known
    if not _too_small(problem, family, low, r, q) if low > 0 else False:
        return low
    high = max(low, 1e-9, r + q + float((family.work * family.slots).sum()) / len(problem.gpus)) * 2 + 1.0
    while _too_small(problem, family, high, r, q):
        low, high = high, 2 * high
    while high - low > precision * max(high, PRECISION):
        middle = (low + high) / 2
        if _too_small(problem, family, middle, r, q):
            low = middle
        else:
            high = middle
    return low


def _family(problem: Problem, model: Ints, work: Floats, head: Floats, tail: Floats) -> _Family:
    count = len(problem.models)
    total: Floats = np.bincount(model, weights=work, minlength=count).astype(np.float64)
    first, last = np.full(count, np.inf), np.full(count, np.inf)
    np.minimum.at(first, model, head)
    np.minimum.at(last, model, tail)
    used = np.flatnonzero(np.bincount(model, minlength=count))
    models = [problem.models[m] for m in used]
    held = np.zeros(count)
    for placement in problem.placements:
        held[placement.model] += 1
    for running in problem.running:
        held[problem.model[running.task]] += 1
    again = np.array([m.load_s for m in models])
    clear = np.array([m.memory_gb / UNLOAD_GB_PER_S for m in models])
    if problem.host_memory_gb:
        asleep = np.array([m.sleep_s if m.sleep_s is not None and m.wake_s is not None else np.inf for m in models])
        clear = np.minimum(clear, asleep)
        again = np.array([m.load_s if m.wake_s is None else min(m.wake_s, m.load_s) for m in models])
    full = np.array([m.load_s for m in models])
    return _Family(
        work=total[used],
        head=first[used],
        tail=last[used],
        slots=np.array([m.width * _share(problem, m) for m in models]),
        load=again,
        more=np.where(held[used] > 0, 0.0, full - again),
        clear=clear,
        held=held[used],
    )


def _share(problem: Problem, model: Model) -> float:
    """How much of a GPU one placement takes of each of its GPUs, at the least."""
    if not problem.shared:
        return 1.0
    rooms = [g.memory_gb for g in problem.gpus]
    return min((min(1.0, model.memory_gb / room) if room else 1.0) for room in rooms)


def _too_small(problem: Problem, f: _Family, t: float, r: float, q: float) -> bool:
    """Whether no plan can end by `t`."""
    span = t - f.head - f.tail
    if (span < 0).any() or ((span == 0) & (f.work > 0)).any():
        return True
    with np.errstate(invalid="ignore", divide="ignore"):
        # A hair less than the quotient: rounding must never ask for one placement too many.
        count = np.where(f.work > 0, np.ceil(f.work / span * (1 - 1e-12)), 1.0)
    count = np.maximum(count, 1.0)
    loads = np.maximum(count - f.held, 0.0)
    need = float((f.work * f.slots).sum())
    slots = loads * f.slots
    spare = slots.sum() - len(problem.gpus) if not problem.shared else 0.0
    if r == 0.0:
        need += float((slots * f.load).sum() + (f.slots * f.more).sum())
        if spare > 0:
            # Of the slots of all placements, all but one a GPU are given up again: at least those of least memory.
            need += _least_sum(slots, f.clear, spare)
    elif spare > 0:
        need += _least_sum(slots, f.load, spare)
    return need > sum(t - q - max(r, min(busy, t - q)) for busy in _busy(problem))


def _busy(problem: Problem) -> list[float]:
    """Until when each GPU can take nothing."""
    until = [g.free_at for g in problem.gpus]
    if problem.shared:
        return until
    for running in problem.running:
        for gpu in running.gpus:
            until[gpu] = max(until[gpu], running.end)
    return until


def _least_sum(counts: Floats, values: Floats, amount: float) -> float:
    """The least sum of `amount` values, each there `counts` times."""
    order = np.argsort(values)
    before = np.concatenate(([0.0], np.cumsum(counts[order])[:-1]))
    taken = np.clip(amount - before, 0.0, counts[order])
    return float((taken * values[order]).sum())
