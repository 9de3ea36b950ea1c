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

T is too small where this exceeds N (T - q - r) GPU-seconds.

*Widths.* At no moment do the widths of what loads or runs sum to more than N; then neither do f(k), for a dual feasible
function f: f(k) = N for k > N - w, k for w <= k, 0 below (what cannot run beside a wide model waits for it), or N / j
floor((j + 1) k / N) where (j + 1) k / N is no whole number (of 4 GPUs' width, two fit 10 GPUs and no more). So the energy
argument, unloads aside, holds with f(k) for k.

*Turns.* Models that take more than half of the GPUs never run or load two at a time, nor beside a model m that needs more
GPUs than they leave. So the work and loads of these come on top of what a placement of m loads and does, which is no more
than T - q - L less all that; m needs more placements then.

*Slots.* A loaded slot keeps its GPU for its load and its shortest task, so at most j of those for which this takes more
than (T - q) / (j + 1) fit one GPU between 0 and T - q. T is too small where there are more than j N of them.

*Alone or shared.* A GPU that has only one of these placements takes all of T - q from the N (T - q) GPU-seconds, and does
at most s_m of m's work. A placement that is not alone leaves time for another one's load and shortest task and for an
unload: it does at most that much less. Each model has as many of the one and of the other kind as take the least.

*Together.* Models of which any two have tasks that must follow each other, both ways, are there at one moment where each
is placed once (`cliques.py`); so where they need more than N GPUs, some are placed twice: the difference at least, of the
shortest loads.

*Phases.* A model that runs beside no other is placed once, which splits the plan in two (`phases.py`), or twice at least:
T is too small where it fits neither way.

As T grows the need falls and the room grows, so the least T that is not too small is found by bisection. Thresholds r and
q are tried over the quantiles of heads and tails; every pair is a bound of its own, and so is their maximum.

Energetic reasoning: Baptiste, Le Pape, Nuijten, "Satisfiability tests and time-bound adjustments for cumulative
scheduling problems", Annals of Operations Research 92 (1999). The count of placements is the bin-covering argument of
batch scheduling with family setups: Monma and Potts, "On the complexity of scheduling with batch setup times",
Operations Research 37 (1989). Dual feasible functions: Fekete and Schepers, "New classes of fast lower bounds for bin
packing problems", Mathematical Programming 91 (2001).

Relaxed where a problem uses the optional parts: several models on a GPU give unloads no price and slots no limit, and a
placement takes but the share of a GPU that it takes of the largest one's memory; a model that can sleep is loaded once, if
it is not there at t = 0, and woken otherwise, and a GPU is rid of it by unload or by sleep, whichever is shorter; GPUs
that are free later give less room. Phases count only where nothing is there at t = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gswarm.scheduler import critical
from gswarm.scheduler.cliques import Followers
from gswarm.scheduler.demand import Demand, demand
from gswarm.scheduler.phases import Phase, least_load_s, phases
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Bools, Floats, Ints, Model, Problem

NOTHING = 1e-12
SHARERS = 4
"""So many slots of one GPU are told apart."""
THRESHOLDS = 24
"""Heads and tails that are tried, each; beyond it the bound hardly grows."""
PRECISION, ROUGHLY = 1e-9, 1e-3
"""Relative; bisection stops below it, on the side that is too small."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` seconds; `parts` are the arguments it is the best of, by name."""

    value: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Family:
    """What a set of tasks asks of the GPUs, per model."""

    model: Ints
    work: Floats
    """Execution seconds on one placement."""
    head: Floats
    tail: Floats
    shortest: Floats
    """Execution seconds of the shortest task."""
    slots: Floats
    """GPUs a placement takes; where several models are on one, the share of their memory that it takes."""
    weights: tuple[Floats, ...]
    """Dual feasible functions of `slots`, for N GPUs."""
    load: Floats
    """Or waking, for a model that can sleep."""
    more: Floats
    """How much longer the first load takes where nothing is there at t = 0, for nothing sleeps then."""
    unload: Floats
    """Seconds to rid a GPU of it; by sleep where that is shorter."""
    held: Floats
    """Placements that are there at t = 0."""
    busy: Floats
    """Per GPU: until when it can take nothing."""
    others: Floats
    """Per model (row): 1 for each (column) that never runs beside it, nor beside another one of these."""
    cliques: tuple[Bools, ...] = ()
    """Models, as columns of the above, that are there at one time where each is placed once."""
    phases: tuple[Phase, ...] = ()
    """Of models that run beside no other; only where all tasks are meant."""


def lower_bound(problem: Problem, *, online: bool = False) -> Bound:
    """No valid plan of `problem` ends before `value`. Offline arrivals are ignored, as in `problem.offline()`."""
    if not problem.tasks:
        return Bound(0.0, {})
    if not online and (problem.arrivals.any() or problem.release.any()):
        problem = problem.offline()
    order = critical.levels(problem)
    seconds, head, tail, waiting = _paths(problem, order)
    asked = demand(len(problem.models), problem.model[waiting], seconds[waiting], head[waiting], tail[waiting])
    whole = _family(problem, seconds, head, tail, waiting)
    followers = None if problem.shared or problem.placements or problem.running else Followers(problem, order)
    if followers is not None:
        whole = replace(_together(whole, followers, waiting), phases=tuple(phases(problem, seconds, order)))
    path = float((head + seconds + tail).max())
    energy = within = _least(problem, whole, asked, 0.0, 0.0, 0.0, PRECISION)
    best = max(path, energy)
    for r in _quantiles(head):
        for q in _quantiles(tail):
            if r > 0 or q > 0:
                chosen = waiting & (head >= r) & (tail >= q)
                family = _family(problem, seconds, head, tail, chosen)
                if followers is not None and q == 0:
                    family = _together(family, followers, chosen)
                within = max(within, _least(problem, family, asked, r, q, max(best, within), PRECISION))
    return Bound(max(best, within), {"path": path, "work and loads": energy, "work within heads and tails": within})


def rough_bound(problem: Problem, order: list[Ints]) -> float:
    """The path and energy arguments for all tasks at once: nearly as good, in no time. `order` is from `critical.levels`."""
    if not problem.tasks:
        return 0.0
    seconds, head, tail, waiting = _paths(problem, order)
    whole = _family(problem, seconds, head, tail, waiting)
    return max(float((head + seconds + tail).max()), _least(problem, whole, None, 0.0, 0.0, 0.0, ROUGHLY))


def _paths(problem: Problem, order: list[Ints]) -> tuple[Floats, Floats, Floats, Bools]:
    """Per task: seconds at the best, head, tail; and whether it does not run already."""
    seconds = problem.seconds / max(g.speed for g in problem.gpus)
    base = np.maximum(_first_start(problem), problem.release)
    waiting = np.ones(problem.tasks, dtype=bool)
    for running in problem.running:
        base[running.task], seconds[running.task], waiting[running.task] = 0.0, running.end, False
    return seconds, critical.heads(problem, base, seconds, order), critical.tails(problem, seconds, order), waiting


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
    problem: Problem, family: _Family, asked: Demand | None, r: float, q: float, known: float, precision: float
) -> float:
    """The least T that the family does not rule out; `known` if that is no more."""
    if not len(family.work):
        return known
    low = known
    if low > 0 and not _too_small(problem, family, asked, low, r, q):
        return low
    # No less than the work alone takes, and most often not much more.
    low = max(low, r + q + float((family.work * family.slots).sum()) / len(problem.gpus))
    high = 1.3 * low if low > PRECISION else 1.0
    while _too_small(problem, family, asked, high, r, q):
        low, high = high, 2 * high
    while high - low > precision * max(high, PRECISION):
        middle = (low + high) / 2
        if _too_small(problem, family, asked, middle, r, q):
            low = middle
        else:
            high = middle
    return low


def _family(problem: Problem, seconds: Floats, head: Floats, tail: Floats, chosen: Bools) -> _Family:
    count = len(problem.models)
    model, work = problem.model[chosen], seconds[chosen]
    total: Floats = np.bincount(model, weights=work, minlength=count).astype(np.float64)
    first, last, shortest = np.full(count, np.inf), np.full(count, np.inf), np.full(count, np.inf)
    np.minimum.at(first, model, head[chosen])
    np.minimum.at(last, model, tail[chosen])
    np.minimum.at(shortest, model, work)
    used = np.flatnonzero(np.bincount(model, minlength=count))
    models = [problem.models[m] for m in used]
    held = np.zeros(count)
    for placement in problem.placements:
        held[placement.model] += 1
    for running in problem.running:
        held[problem.model[running.task]] += 1
    full, again = np.array([m.load_s for m in models]), np.array([least_load_s(problem, m) for m in models])
    unload = np.array([m.memory_gb / UNLOAD_GB_PER_S for m in models])
    if problem.host_memory_gb:
        unload = np.minimum(unload, [m.sleep_s if m.can_sleep and m.sleep_s is not None else np.inf for m in models])
    slots = np.array([m.width * _share(problem, m) for m in models])
    return _Family(
        model=used,
        work=total[used],
        head=first[used],
        tail=last[used],
        shortest=shortest[used],
        slots=slots,
        weights=() if problem.shared else _dual_feasible(slots, len(problem.gpus)),
        load=again,
        more=np.where(held[used] > 0, 0.0, full - again),
        unload=unload,
        held=held[used],
        busy=_busy(problem),
        others=_others(slots, len(problem.gpus), problem.shared),
    )


def _together(family: _Family, followers: Followers, chosen: Bools) -> _Family:
    return replace(family, cliques=tuple(np.isin(family.model, clique) for clique in followers.cliques(chosen)))


def _share(problem: Problem, model: Model) -> float:
    """How much of a GPU one placement takes of each of its GPUs, at the least."""
    if not problem.shared:
        return 1.0
    return min((min(1.0, model.memory_gb / g.memory_gb) if g.memory_gb else 1.0) for g in problem.gpus)


def _too_small(problem: Problem, f: _Family, asked: Demand | None, t: float, r: float, q: float) -> bool:
    """Whether no plan can end by `t`."""
    span = t - f.head - f.tail
    if _is_short(span, f.work):
        return True
    count = _quotient(f.work, span)
    if asked is not None:
        placements = asked.placements(t, r, q)
        if placements is None:
            return True
        count = np.maximum(count, placements[f.model])
    alone = _by_turns(f, count, t, r, q)
    if _is_short(alone, f.work):
        return True
    span = np.minimum(span, alone)
    count = np.maximum(count, _quotient(f.work, alone))
    room = float((t - q - np.clip(f.busy, r, t - q)).sum())
    if _energy(problem, f, count, r) > room:
        return True
    loads = np.maximum(count - f.held, 0.0)
    slots = loads * f.slots
    gpus, loading = len(problem.gpus), loads * f.load if r == 0.0 else 0.0
    if any(float(((f.work + loading) * weights).sum()) > gpus * (t - q - r) for weights in f.weights):
        return True
    if r > 0.0 or problem.shared:
        return False
    kept = f.load + f.shortest
    if any(slots[kept * (j + 1) > t - q].sum() > j * gpus for j in range(1, SHARERS + 1)):
        return True
    # Where all placements are alone both sides are the same sum; rounding must not tell them apart.
    if not f.held.any() and _alone_or_shared(f, count, span, gpus, t, q) > gpus * (t - q) * (1 + 1e-9):
        return True
    for phase in f.phases:
        twice = np.where(f.model == phase.model, np.maximum(count, 2.0), count)
        alone = _by_turns(f, twice, t, r, q)
        twice = np.maximum(twice, _quotient(f.work, np.maximum(alone, NOTHING)))
        if (_is_short(alone, f.work) or _energy(problem, f, twice, r) > room) and not phase.fits(t, gpus):
            return True
    return False


def _is_short(span: Floats, work: Floats) -> bool:
    return bool((span < 0).any() or ((span == 0) & (work > 0)).any())


def _quotient(work: Floats, span: Floats) -> Floats:
    """Placements that so much work takes, one at least; a hair less than the quotient, as in `Demand`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        count: Floats = np.where(work > 0, np.ceil(work / span * (1 - 1e-12)), 1.0)
    return np.maximum(count, 1.0)


def _by_turns(f: _Family, count: Floats, t: float, r: float, q: float) -> Floats:
    """Seconds that a placement of each model can run for, as others never run or load meanwhile."""
    if r > 0.0:
        return t - q - r - f.others @ f.work
    loading = np.maximum(count - f.held, 0.0) * f.load
    span: Floats = t - q - np.where(f.held > 0, 0.0, f.load) - f.others @ (f.work + loading)
    return span


def _energy(problem: Problem, f: _Family, count: Floats, r: float) -> float:
    """GPU-seconds that so many placements of each model take after `r` at least."""
    slots = np.maximum(count - f.held, 0.0) * f.slots
    need = float((f.work * f.slots).sum())
    if r == 0.0:
        need += float((slots * f.load).sum() + (f.slots * f.more).sum())
    more = _given_up(problem, f, slots, r)
    for clique in f.cliques:
        once = np.where(clique & (count == 1), f.slots, 0.0)
        twice = once.sum() - len(problem.gpus)
        if twice > 0:
            again = _least_sum(once, f.load, twice) if r == 0.0 else 0.0
            more = max(more, again + _given_up(problem, f, slots + once, r, once.sum() - twice))
    return need + more


def _given_up(problem: Problem, f: _Family, slots: Floats, r: float, but: float = 0.0) -> float:
    """GPU-seconds that all `slots`, but so many and one a GPU, take to unload at least, or to be loaded after `r`.

    Of the slots of all placements all but one a GPU are given up again; and no more than that are there at `r`.
    """
    spare = slots.sum() - but - len(problem.gpus)
    if problem.shared or spare <= 0:
        return 0.0
    return _least_sum(slots, f.unload if r == 0.0 else f.load, spare)


def _others(slots: Floats, gpus: int, shared: bool) -> Floats:
    """Which models run by turns, as `_Family.others`: those above half of the GPUs, and who does not fit beside them."""
    found: Floats = ((2 * slots > gpus) & (slots[:, None] + slots > gpus) & (not shared)).astype(np.float64)
    np.fill_diagonal(found, 0.0)
    return found


def _alone_or_shared(f: _Family, count: Floats, span: Floats, gpus: int, t: float, q: float) -> float:
    """GPU-seconds that placements take at least, a GPU that has only one counted in full."""
    until = t - q
    others = f.load + f.shortest
    least = np.full(len(others), others.min())
    if q == 0.0 and len(others) > 1:
        # Between two placements of one model on one GPU there is another model's.
        first = int(others.argmin())
        least[first] = np.where(f.slots[first] > 1, others[first], np.delete(others, first).min())
    room = np.minimum(until - f.load - least - f.unload.min(), span)
    alone = np.minimum(np.arange(gpus + 1)[:, None], count)
    rest = np.maximum(f.work * (1 - 1e-9) - alone * span, 0.0)
    shared = np.where(rest > 0, np.ceil(rest / np.maximum(room, NOTHING) * (1 - 1e-12)), 0.0)
    shared = np.maximum(shared, count - alone)
    taken = f.slots * (alone * until + shared * f.load + rest)
    return float(np.where((rest > 0) & (room <= 0), np.inf, taken).min(axis=0).sum())


def _dual_feasible(slots: Floats, gpus: int) -> tuple[Floats, ...]:
    """Functions of widths that never sum to more than `gpus` where the widths do not; only those that gain something."""
    found: list[Floats] = []
    for least in sorted({gpus - k + 1 for k in slots.tolist() if k < gpus < 2 * k}):
        found.append(np.where(slots > gpus - least, gpus, np.where(slots >= least, slots, 0.0)))
    for j in sorted({int(gpus // k) for k in slots.tolist() if gpus % k}):
        parts = (j + 1) * slots
        found.append(np.where(parts % gpus == 0, slots, gpus / j * (parts // gpus)))
    return tuple(f for f in found if (f > slots).any())


def _busy(problem: Problem) -> Floats:
    until = np.array([g.free_at for g in problem.gpus])
    for running in () if problem.shared else problem.running:
        for gpu in running.gpus:
            until[gpu] = max(until[gpu], running.end)
    return until


def _least_sum(counts: Floats, values: Floats, amount: float) -> float:
    """The least sum of `amount` values, each there `counts` times."""
    order = np.argsort(values)
    before = np.concatenate(([0.0], np.cumsum(counts[order])[:-1]))
    taken = np.clip(amount - before, 0.0, counts[order])
    return float((taken * values[order]).sum())
