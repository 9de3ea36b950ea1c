"""A recording in figures: pure functions of its samples and of what the cluster did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np

from gswarm.profiler import findings
from gswarm.profiler.history import History, Span, SpanKind
from gswarm.profiler.metrics import CLOCK_EVENTS, POWER_CAP
from gswarm.profiler.metrics import THROTTLES as ALARMING
from gswarm.profiler.series import Column, Flags, Floats, Series, Times
from gswarm.profiler.types import Analysis, DeviceFigures, MetricFigures, ModelFigures, NodeFigures, Throttled
from gswarm.queue.types import TaskPhase

IDLE_BELOW_PERCENT = 5.0
"""A device under this GPU utilisation is idle: a display or a monitor alone keeps it above 0."""
THROTTLES = {bit: name for bit, name in CLOCK_EVENTS if bit & (ALARMING | POWER_CAP)}
"""The bits of nvmlClocksEventReasons that hold clocks down against the wish of who uses the device. Idle (0x1), clocks
set by the user (0x2), sync boost (0x10) and display (0x100) do not."""
KINDS = {"gpu": "GPU", "mig": "MIG", "simulated": "SIM", "cpu": "CPU"}


def analyse(series: Sequence[Series], history: History) -> Analysis:
    """Every figure and finding."""
    devices = tuple(_device(one, history) for one in series)
    nodes = tuple(_node(name, devices) for name in dict.fromkeys(d.node for d in devices))
    models = _models(history)
    return Analysis(
        history.name,
        _moment(history.start_us),
        _moment(history.end_us),
        sum(len(one.times_us) for one in {one.node: one for one in series}.values()),
        len(history.events),
        findings.find(devices, nodes, models, series, history),
        devices,
        nodes,
        models,
        (*history.damage, *(f"{_moment(at):%H:%M:%S} {why}" for at, why in history.lost)),
    )


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)


# One metric


def percentile(values: Floats, weights: Floats, share: float) -> float | None:
    """The least value with at least `share` of the weight at or below it; None when nothing is known.

    That is the inverse of the weighted empirical distribution: a value that was seen, never one between two.
    """
    known = ~np.isnan(values) & (weights > 0)
    if not known.any():
        return None
    order = np.argsort(values[known], kind="stable")
    summed = np.cumsum(weights[known][order])
    # A hair less: a sum of many weights is not exactly the share of their total.
    place = int(np.searchsorted(summed, share * summed[-1] * (1 - 1e-12), side="left"))
    return float(values[known][order][min(place, len(summed) - 1)])


def mean(values: Floats, weights: Floats) -> float | None:
    """Weighted with time; None when nothing is known."""
    known = ~np.isnan(values) & (weights > 0)
    if not known.any():
        return None
    # Rounding must not put it outside what was seen.
    seen = values[known]
    return float(np.clip(np.average(seen, weights=weights[known]), seen.min(), seen.max()))


def share(flags: Flags, known: Flags, weights: Floats) -> float | None:
    """Of the time for which it is known, for how much it held, 0 to 1; None when it is never known."""
    total = float(weights[known].sum())
    return min(1.0, float(weights[known & flags].sum()) / total) if total > 0 else None


def figures(metric: str, unit: str, values: Floats, weights: Floats) -> MetricFigures:
    """A metric's distribution over time."""
    known = ~np.isnan(values)
    total = float(weights.sum())
    return MetricFigures(
        metric,
        unit,
        mean(values, weights),
        percentile(values, weights, 0.50),
        percentile(values, weights, 0.95),
        percentile(values, weights, 0.99),
        float(values[known].max()) if known.any() else None,
        float(values[known].min()) if known.any() else None,
        min(1.0, float(weights[known].sum()) / total) if total > 0 else 0.0,
    )


def increments(column: Column) -> tuple[Floats, Flags]:
    """How much a counter grew from each sample to the next, and where that is known.

    A counter that falls was reset, and has since counted from 0; one that falls from the upper half of its range has
    gone round. What was counted between the last sample and a reset is lost, so a sum is at least what it says.
    """
    values, known = column.values, column.known
    if len(values) < 2:
        return np.zeros(0), np.zeros(0, np.bool_)
    # NA in between: the counter counts on, so the growth belongs to the next known value.
    place = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    before, after = values[np.maximum(place[:-1], 0)], values[1:]
    both = (place[:-1] >= 0) & known[1:]
    whole = np.issubdtype(values.dtype, np.unsignedinteger)
    half = np.iinfo(values.dtype).max // 2 if whole else np.inf
    reset = (after < before) & ~(before > half)
    grown = np.where(reset, after, after - before)  # unsigned: modulo its range
    return np.where(both, grown, 0).astype(np.float64), both


def rates(one: Series, column: Column) -> Floats:
    """A counter's growth a second over the interval before each sample; the first is NA."""
    grown, known = increments(column)
    seconds = np.diff(one.times_us) / 1e6
    holes = ~column.known[:-1]  # growth over more than one interval is no rate of the last one
    told = np.where(known & ~holes & (seconds > 0), grown / np.where(seconds > 0, seconds, 1), np.nan)
    return np.concatenate((np.full(min(1, len(one.times_us)), np.nan), told))


def gauges(one: Series) -> Iterator[tuple[str, str, Floats]]:
    """What can be averaged, as (metric, unit, values): gauges as they are, counters as growth a second, no bit sets."""
    for name, column in one.columns.items():
        if column.is_mask:
            continue
        if column.is_counter:
            if f"{name}_per_s" in one.columns:
                continue  # the device gives the rate itself
            yield f"{name}_per_s", f"{column.unit}/s", rates(one, column)
        else:
            yield name, column.unit, column.numbers()


def energy(one: Series, weights: Floats) -> tuple[float | None, str]:
    """Joules, and what they rest on: the energy counter where there is one, else power times time."""
    if (column := one.columns.get("energy_mj")) is not None:
        grown, known = increments(column)
        if known.any():
            return float(grown.sum()) / 1e3, "counter"
    power = one.numbers("power_mw")
    known = ~np.isnan(power)
    if not known.any():
        return None, ""
    return float((power[known] * weights[known]).sum()) / 1e3, "power"


# A device


def idle(one: Series) -> tuple[Flags, Flags]:
    """At which samples it idled, and where that is known."""
    util = one.numbers("gpu_util_percent")
    known = ~np.isnan(util)
    return known & (np.where(known, util, 100.0) < IDLE_BELOW_PERCENT), known


def throttles(one: Series) -> tuple[dict[str, Flags], Flags]:
    """At which samples each reason held the clocks down, and where that is known."""
    column = one.columns.get("clock_event_reasons")
    if column is None:
        return {}, np.zeros(len(one.times_us), np.bool_)
    bits = column.values.astype(np.uint64)
    return {why: column.known & ((bits & np.uint64(bit)) != 0) for bit, why in THROTTLES.items()}, column.known


def throttled(one: Series) -> tuple[Flags, Flags]:
    """At which samples any of them did, and where that is known."""
    reasons, known = throttles(one)
    return np.logical_or.reduce([np.zeros(len(known), np.bool_), *reasons.values()]), known


def within(times_us: Times, spans: Sequence[Span]) -> Flags:
    """Which times lie in any of these spans."""
    inside = np.zeros(len(times_us), np.bool_)
    for span in spans:
        inside[np.searchsorted(times_us, span.start_us) : np.searchsorted(times_us, span.end_us)] = True
    return inside


def _device(one: Series, history: History) -> DeviceFigures:
    weights = one.holds_s(history.interval_s, history.slowest_s)
    always = np.ones(len(weights), np.bool_)
    idles, known = idle(one)
    is_cpu = history.is_cpu(one.device)
    if is_cpu:
        known = np.zeros(len(weights), np.bool_)  # a processor that idles is no finding
    waiting = history.waiting.get(one.device)
    ready = np.zeros(len(weights), np.bool_) if waiting is None else waiting.at(one.times_us) > 0
    reasons, told = throttles(one)
    any_reason, _ = throttled(one)
    loading = history.of(SpanKind.SERVICE, one.device, "loading")
    used, total = one.numbers("memory_used_bytes"), one.numbers("memory_total_bytes")
    free = total - used
    joules, basis = energy(one, weights)
    described = history.devices.get(one.device)
    span_s = float(one.times_us[-1] - one.times_us[0]) / 1e6 if len(one.times_us) else 0.0
    return DeviceFigures(
        history.label(one.device),
        one.device,
        one.node,
        described.name if described is not None else "",
        KINDS.get(described.kind.value, "") if described is not None else "SIM" if "SIM-" in one.device else "",
        len(one.times_us),
        float(weights.sum()),
        max(0.0, span_s - float(weights[:-1].sum())),
        share(idles, known, weights),
        share(idles & ready, known, weights),
        share(within(one.times_us, loading), always, weights) or 0.0,
        len(loading),
        share(any_reason, told, weights),
        tuple(
            Throttled(why, part)
            for why, flags in reasons.items()
            if (part := share(flags, told, weights)) is not None and part > 0
        ),
        int(np.nanmin(free)) if not np.isnan(free).all() else None,
        joules,
        basis,
        tuple(figures(name, unit, values, weights) for name, unit, values in gauges(one)),
    )


# Devices together


def imbalance(loads: Sequence[float]) -> float | None:
    """How uneven loads are: 0 when all are the same, 1 when one has everything; None for fewer than two, or no load.

    (max - mean) / max · n / (n - 1), the imbalance percentage of DeRose, Homer and Johnson, "Detecting application
    load imbalance on high end massively parallel systems", Euro-Par 2007.
    """
    if len(loads) < 2 or max(loads) <= 0:
        return None
    top = max(loads)
    return min(1.0, max(0.0, (top - sum(loads) / len(loads)) / top * len(loads) / (len(loads) - 1)))


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _node(name: str, devices: Sequence[DeviceFigures]) -> NodeFigures:
    here = [d for d in devices if d.node == name and d.kind != "CPU"]
    means = [f.mean for d in here if (f := d.figures("gpu_util_percent")) is not None and f.mean is not None]
    joules = [d.energy_j for d in here if d.energy_j is not None]
    return NodeFigures(
        name,
        len(here),
        _average(means),
        _average([d.idle_share for d in here]),
        _average([d.throttled_share for d in here]),
        imbalance(means),
        sum(joules) if joules else None,
        len(joules),
    )


# Models


def _models(history: History) -> tuple[ModelFigures, ...]:
    tasks = [span for span in history.of(SpanKind.TASK) if not span.is_open and span.model]
    loads = history.of(SpanKind.SERVICE, phase="loading")
    names = sorted({span.model for span in (*tasks, *loads) if span.model})
    return tuple(_model(name, tasks, loads) for name in names)


def _model(name: str, tasks: Sequence[Span], loads: Sequence[Span]) -> ModelFigures:
    mine = [span for span in tasks if span.model == name]
    took = [span for span in loads if span.model == name]
    whole = [span.seconds for span in took if not span.is_open]
    runs = np.array([span.seconds for span in mine if span.phase == TaskPhase.DONE.value])
    waits = np.array([span.wait_s for span in mine if span.wait_s is not None])
    tokens = [span.tokens for span in mine if span.tokens is not None]
    return ModelFigures(
        name,
        len(mine),
        sum(span.phase != TaskPhase.DONE.value for span in mine),
        mean(runs, np.ones(len(runs))),
        percentile(runs, np.ones(len(runs)), 0.95),
        mean(waits, np.ones(len(waits))),
        percentile(waits, np.ones(len(waits)), 0.95),
        sum(tokens) if tokens else None,
        len(took),
        sum(whole) / len(whole) if whole else None,
    )
