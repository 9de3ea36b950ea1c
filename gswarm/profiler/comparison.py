"""Two recordings side by side: what changed per device and per model, and what noise alone would do as well."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gswarm.profiler.analysis import gauges, idle, mean, throttled
from gswarm.profiler.charts import label
from gswarm.profiler.history import History, SpanKind
from gswarm.profiler.series import Floats, Series
from gswarm.profiler.types import Change, Comparison, Verdict
from gswarm.queue.types import TaskPhase

METRICS = (
    "gpu_util_percent",
    "sm_active_percent",
    "dram_active_percent",
    "memory_used_bytes",
    "power_mw",
    "temperature_c",
    "sm_clock_mhz",
)
"""What is compared unless something else is asked for; beside these the shares of time idle and throttled."""
RESAMPLES = 1000
LEAST_SAMPLES = 20
LEAST_RUNS = 5
LEAST_PIECES = 5
"""So many samples, tasks, and stretches that know nothing of each other there must be for a word about noise."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One side."""

    series: Sequence[Series]
    history: History


def compare(
    a: Recorded, b: Recorded, *, metrics: Sequence[str] = (), confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Every device and model that both have, or with `metrics` these of the devices.

    Each figure comes with the interval that its difference lies in.

    With so many figures some would stand out by chance: the chance that any verdict is noise is kept to
    1 - `confidence` in all, each interval being made wider for that (Bonferroni).
    """
    pairs = [*_device_pairs(a, b, metrics), *(() if metrics else _model_pairs(a.history, b.history))]
    asked = sum(len(pair.a) > 0 and len(pair.b) > 0 for pair in pairs)
    level = 1 - (1 - confidence) / max(1, asked)
    generator = np.random.default_rng(seed)
    return Comparison(
        a.history.name,
        b.history.name,
        confidence,
        RESAMPLES,
        seed,
        tuple(_change(pair, level, generator) for pair in pairs),
        tuple(f"{side.history.name}: {note}" for side in (a, b) for note in side.history.damage),
    )


# What is compared


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """One figure's values in both, in order of time; `_weights` say how much time each stands for."""

    subject: str
    kind: str
    metric: str
    unit: str
    a: Floats
    b: Floats
    a_weights: Floats
    b_weights: Floats
    least: int


def _device_pairs(a: Recorded, b: Recorded, metrics: Sequence[str]) -> Iterator[_Pair]:
    for left in a.series:
        right = _counterpart(left, a.history, b)
        if right is None:
            continue
        ours, theirs = dict(_figures(left, a.history, metrics)), dict(_figures(right, b.history, metrics))
        for metric, (unit, values, weights) in ours.items():
            if metric not in theirs:
                continue
            _, others, other_weights = theirs[metric]
            if not np.isnan(values).all() or not np.isnan(others).all():
                yield _pair(
                    label(a.history, left.device), "device", metric, unit, (values, weights), (others, other_weights)
                )


def _counterpart(one: Series, history: History, other: Recorded) -> Series | None:
    """The same device by its id, else the one in the same place: its card may have been exchanged."""
    same = [series for series in other.series if series.device == one.device]
    alias = history.label(one.device)
    place = [series for series in other.series if other.history.label(series.device) == alias]
    return next(iter(same or place), None)


def _figures(one: Series, history: History, metrics: Sequence[str]) -> Iterator[tuple[str, tuple[str, Floats, Floats]]]:
    weights = one.holds_s(history.interval_s, history.slowest_s)
    for name, unit, values in gauges(one):
        if name in (metrics or METRICS) or name.removesuffix("_per_s") in metrics:
            yield name, (unit, values, weights)
    if metrics:
        return
    if not history.is_cpu(one.device):
        flags, known = idle(one)
        yield "idle_percent", ("%", np.where(known, flags * 100.0, np.nan), weights)
    flags, known = throttled(one)
    if "clock_event_reasons" in one.columns:
        yield "throttled_percent", ("%", np.where(known, flags * 100.0, np.nan), weights)


def _pair(
    subject: str,
    kind: str,
    metric: str,
    unit: str,
    a: tuple[Floats, Floats],
    b: tuple[Floats, Floats],
    least: int = LEAST_SAMPLES,
) -> _Pair:
    kept = [~np.isnan(values) & (weights > 0) for values, weights in (a, b)]
    return _Pair(
        subject, kind, metric, unit, a[0][kept[0]], b[0][kept[1]], a[1][kept[0]], b[1][kept[1]], least
    )  # fmt: skip


def _model_pairs(a: History, b: History) -> Iterator[_Pair]:
    sides = [_runs(a), _runs(b)]
    for model in sorted({model for side in sides for model, _ in side}):
        for metric in ("run_s", "wait_s", "load_s"):
            values = [side.get((model, metric), np.zeros(0)) for side in sides]
            if len(values[0]) or len(values[1]):
                left, right = ((found, np.ones(len(found))) for found in values)
                yield _pair(model, "model", metric, "s", left, right, LEAST_RUNS)


def _runs(history: History) -> dict[tuple[str, str], Floats]:
    """(model, "run_s" and so on) to seconds, one value a task or load, in order of start."""
    found: dict[tuple[str, str], list[float]] = {}
    for span in history.spans:
        if span.is_open or not span.model:
            continue
        if span.kind is SpanKind.TASK and span.phase == TaskPhase.DONE.value:
            found.setdefault((span.model, "run_s"), []).append(span.seconds)
            if span.wait_s is not None:
                found.setdefault((span.model, "wait_s"), []).append(span.wait_s)
        elif span.kind is SpanKind.SERVICE and span.phase == "loading":
            found.setdefault((span.model, "load_s"), []).append(span.seconds)
    return {key: np.array(values) for key, values in found.items()}


# Whether it changed


def _change(pair: _Pair, level: float, generator: np.random.Generator) -> Change:
    a, b = mean(pair.a, pair.a_weights), mean(pair.b, pair.b_weights)
    if a is None or b is None:
        where = "the first" if a is None else "the second"
        return Change(
            pair.subject, pair.kind, pair.metric, pair.unit, a, b, None, None, None, Verdict.UNKNOWN, f"NA in {where}"
        )
    difference = b - a
    spreads = [
        spread(values, weights, generator) for values, weights in ((pair.a, pair.a_weights), (pair.b, pair.b_weights))
    ]
    if min(len(pair.a), len(pair.b)) < pair.least or min(one.pieces for one in spreads) < LEAST_PIECES:
        why = "too short to tell from noise"
        return Change(
            pair.subject, pair.kind, pair.metric, pair.unit, a, b, difference, None, None, Verdict.UNKNOWN, why
        )
    wide = t_quantile(0.5 + level / 2, _freedom(spreads)) * math.hypot(*(one.error for one in spreads))
    low, high = difference - wide, difference + wide
    # A mean of equal numbers may differ in its last bit.
    slack = 1e-9 * max(abs(a), abs(b))
    verdict = Verdict.MORE if low > slack else Verdict.LESS if high < -slack else Verdict.SAME
    return Change(pair.subject, pair.kind, pair.metric, pair.unit, a, b, difference, low, high, verdict)


@dataclass(frozen=True, slots=True)
class Spread:
    """How unsure a mean is: its standard error, and from how many independent stretches that is known."""

    error: float
    pieces: float


def spread(values: Floats, weights: Floats, generator: np.random.Generator) -> Spread:
    """Of a weighted mean over time: from the block bootstrap, but no less than a simple model of memory says.

    Blocks that are best for the error's own mean square are too short for intervals, and a short recording hides how
    long its samples hang together: either alone calls noise a change in up to half of such recordings (tried in
    tests/test_comparison.py). So blocks are twice as long, the part of the spread that whole blocks miss is added, and
    the error is at least that of a series in which each value keeps a share of the one before.
    """
    count = len(values)
    if count < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return Spread(0.0, count)  # one value all the time; its sums differ in their last bits
    width = float(np.ptp(values))
    scaled = (values - values.min()) / width  # squares of very small numbers are 0
    length = max(1, min(2 * block_length(scaled), math.ceil(count / 5)))
    resampled = width * standard_error(scaled, weights, length, generator) / math.sqrt(1 - length / count)
    modelled, memory = _first_order(scaled)
    modelled *= width
    if modelled >= resampled:
        return Spread(modelled, max(3.0, count / memory))
    # Blocks overlap, so they say as much as half again as many apart (Priestley, "Spectral analysis and time series",
    # 1981, of the Bartlett window, which circular blocks amount to).
    return Spread(resampled, max(3.0, 1.5 * count / length))


def _first_order(values: Floats) -> tuple[float, float]:
    """The mean's standard error if each value keeps a share of the one before, and how many values say as much as one.

    The share that a short series shows is too small by (1 + 3 share) / n (Marriott and Pope, "Bias in the estimation
    of autocorrelations", Biometrika 41, 1954), and so is the variance about its own mean.
    """
    count = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / count
    share = float(centred[:-1] @ centred[1:]) / (count * variance)
    share = min(0.999, max(0.0, share + (1 + 3 * share) / count))
    memory = (1 + share) / (1 - share)
    return math.sqrt(variance * memory / count / max(0.1, 1 - memory / count)), memory


def block_length(values: Floats) -> int:
    """How many successive samples hang together: the block length of the circular block bootstrap.

    Chosen from the series itself, by Politis and White, "Automatic block-length selection for the dependent
    bootstrap", Econometric Reviews 23 (2004), with the correction of Patton, Politis and White, 28 (2009).
    """
    count = len(values)
    centred = values - values.mean() if count else values
    if count < 4 or not (widest := float(np.abs(centred).max())) > 0:
        return 1
    centred = centred / widest
    spread = float(centred @ centred) / count
    most = min(count - 1, math.ceil(math.sqrt(count)) + max(5, round(math.log10(count))))
    covariance = np.array([float(centred[: count - lag] @ centred[lag:]) / count for lag in range(most + 1)])
    run = max(5, round(math.log10(count)))
    quiet = np.abs(covariance[1:] / spread) < 2 * math.sqrt(math.log10(count) / count)
    # The last lag that matters: none of the `run` lags after it stands out.
    last: int = next((lag for lag in range(most - run + 1) if quiet[lag : lag + run].all()), most)
    width = min(2 * max(last, 1), most)
    lags = np.arange(1, width + 1)
    window = np.minimum(1.0, 2 * (1 - lags / width))  # flat, then falling to 0
    weighted = window * covariance[1 : width + 1]
    around = spread + 2 * float(weighted.sum())
    slope = 2 * float((weighted * lags).sum())
    if around <= 0:
        return 1
    length = (2 * slope**2 / (4 / 3 * around**2)) ** (1 / 3) * count ** (1 / 3)
    longest = math.ceil(min(3 * math.sqrt(count), count / 3))
    return max(1, min(math.ceil(float(length)), longest))


def standard_error(values: Floats, weights: Floats, length: int, generator: np.random.Generator) -> float:
    """Of the weighted mean, by the circular block bootstrap: stretches of `length` drawn anywhere, put together anew.

    Politis and Romano, "A circular block-resampling procedure for stationary data", 1992. Successive samples of a
    device are much alike, and drawing them one by one would take them for as many independent ones.
    """
    count = len(values)
    if count < 2:
        return 0.0
    draws = math.ceil(count / length)
    # Sums over each block, once; a resample is then the sum of a few of these.
    around = np.arange(count)
    tops, bottoms = _circular_sums(values * weights, length), _circular_sums(weights, length)
    chosen = generator.choice(around, size=(RESAMPLES, draws))
    means = tops[chosen].sum(axis=1) / bottoms[chosen].sum(axis=1)
    return float(means.std(ddof=1))


def _circular_sums(values: Floats, length: int) -> Floats:
    summed = np.concatenate(([0.0], np.cumsum(np.concatenate((values, values[: length - 1])))))
    return summed[length:] - summed[:-length]


def _freedom(spreads: Sequence[Spread]) -> float:
    """Degrees of freedom of a difference of two means whose errors are known from so many pieces (Welch, 1947)."""
    parts = [one.error**2 for one in spreads]
    if not (total := sum(parts)) > 0:
        return min(one.pieces for one in spreads) - 1
    return total**2 / sum(part**2 / (one.pieces - 1) for part, one in zip(parts, spreads, strict=True))


def t_quantile(share: float, freedom: float) -> float:
    """Of Student's t, for a share over a half: an error known from few pieces is unsure itself.

    G. W. Hill, "Algorithm 396: Student's t-quantiles", Communications of the ACM 13 (1970). From 2 degrees of freedom.
    """
    both, n = 2 * (1 - share), max(2.0, freedom)
    if n <= 2:
        return math.sqrt(2 / (both * (2 - both)) - 2)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * both) ** (2 / n)
    if y <= 0.05 + a:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
            n + 2
        ) + 1 / y
        return math.sqrt(n * y)
    x = NormalDist().inv_cdf(both / 2)
    y = x**2
    if n < 5:
        c += 0.3 * (n - 4.5) * (x + 0.6)
    c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
    return math.sqrt(n * math.expm1(a * y**2))
