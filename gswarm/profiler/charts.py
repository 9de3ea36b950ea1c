"""What every picture of a recording shares: which metrics, in which unit, as which points; gaps and NA stay gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gswarm.errors import InvalidError
from gswarm.names import near
from gswarm.profiler.analysis import rates, throttled
from gswarm.profiler.history import History
from gswarm.profiler.series import HOLDS, Floats, Series, check_metrics

METRICS = ("gpu_util_percent", "memory_used_bytes", "power_mw", "temperature_c")
"""What is drawn unless something else is asked for, where it was recorded."""
_SCALES = {"B": (2**30, "GiB"), "mW": (1e3, "W"), "mJ": (1e3, "J"), "mJ/s": (1e3, "W"), "B/s": (2**20, "MiB/s")}
_WORDS = {
    "gpu_util_percent": "utilisation",
    "memory_used_bytes": "memory used",
    "power_mw": "power",
    "temperature_c": "temperature",
    "clock_event_reasons": "throttled",
}


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One metric of one device: seconds from the recording's start, and values in `unit`; NaN breaks the line."""

    device: str
    label: str
    metric: str
    unit: str
    x: Floats
    y: Floats
    holds: Floats
    """Seconds that each sample stands for."""


def title(metric: str) -> str:
    """A metric's name for people."""
    return _WORDS.get(metric, metric)


def label(history: History, device: str) -> str:
    """A device's name, with SIM where it exists only as numbers."""
    return f"{history.label(device)}{' SIM' if history.is_simulated(device) else ''}"


def choose(
    series: Sequence[Series], history: History, metrics: Sequence[str], devices: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[Series]]:
    """The metrics and devices that were asked for, else the usual ones with values. Raises InvalidError."""
    check_metrics(metrics, series)
    chosen = list(series)
    if devices:
        chosen = [one for one in series if one.device in {_device(name, series, history) for name in devices}]
    names = tuple(dict.fromkeys(metrics)) or tuple(m for m in METRICS if any(one.has(m) for one in chosen))
    return names, chosen


def _device(name: str, series: Sequence[Series], history: History) -> str:
    """The id of a device by id, by alias, or by what stands behind its node's name where only one node has it."""
    aliases = {history.label(one.device): one.device for one in series}
    for known in ({one.device for one in series} & {name}, {aliases[name]} if name in aliases else set()):
        if known:
            return known.pop()
    short = [device for alias, device in aliases.items() if alias.partition(":")[2] == name]
    if len(short) == 1:
        return short[0]
    meant = [alias for alias, device in aliases.items() if device in short]
    hint = f"did you mean {' or '.join(meant)}?" if meant else near(name, aliases) or f"there are: {', '.join(aliases)}"
    raise InvalidError(f"{name!r} is no device of this recording", next=hint, field="device")


def line(one: Series, history: History, metric: str) -> Line:
    """A metric as points: a counter as its growth a second, the reasons that held clocks down as 0 or 100 %."""
    column = one.columns.get(metric)
    unit = column.unit if column is not None else ""
    values = one.numbers(metric)
    if column is not None and column.is_counter:
        values, unit = rates(one, column), f"{unit}/s"
    elif column is not None and column.is_mask:
        flags, known = throttled(one)
        values, unit = np.where(known, flags * 100.0, np.nan), "%"
    factor, unit = _SCALES.get(unit, (1.0, unit))
    x = (one.times_us - history.start_us) / 1e6
    holds = one.holds_s(history.interval_s, history.slowest_s)
    return Line(one.device, label(history, one.device), metric, unit, x, values / factor, holds)


def broken(found: Line, points: int) -> tuple[Floats, Floats]:
    """At most about 2 x `points` points that look the same: of each stretch of time the least and the greatest value.

    Where samples are missing a NaN stands between, so that no line is drawn over what is not known.
    """
    x, y = found.x, found.y
    if len(x) > 2 * points:
        edges = np.linspace(x[0], x[-1], points + 1)
        place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, points - 1)
        kept = _extremes(place, y)
        x, y, steps = x[kept], y[kept], (x[-1] - x[0]) / points
    else:
        steps = 0.0
    if len(x) < 2:
        return x, y
    usual = float(np.median(found.holds)) if len(found.holds) else 0.0
    longest = np.maximum(found.holds.max(initial=0.0) + 1e-6, HOLDS * max(usual, steps))
    holes = np.flatnonzero(np.diff(x) > longest)
    return np.insert(x, holes + 1, x[holes]), np.insert(y, holes + 1, np.nan)


def _extremes(place: np.typing.NDArray[np.int64], y: Floats) -> np.typing.NDArray[np.int64]:
    """Where in each stretch the least and the greatest known value stand; its first sample when none is known."""
    known = ~np.isnan(y)
    order = np.lexsort((np.where(known, y, 0.0), ~known, place))  # known ones first, growing
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    counts = np.add.reduceat(known[order].astype(np.int64), first)
    last = first + np.maximum(counts, 1) - 1
    return np.unique(np.concatenate((order[first], order[last])))


def top(lines: Sequence[Line]) -> float:
    """Where a value axis ends: 100 for percentages, else a round number above all values."""
    most = max((float(np.nanmax(one.y)) for one in lines if not np.isnan(one.y).all()), default=1.0)
    if most <= 100 and any(one.unit == "%" for one in lines):
        return 100.0
    if most <= 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(most))
    return float(next(step * factor for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * factor >= most * 0.9999))
