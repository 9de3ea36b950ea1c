"""A recording as a picture file, PNG or SVG: a panel a metric, a line a device, loads, tasks and marks below."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gswarm.profiler import charts
from gswarm.profiler.history import History, SpanKind
from gswarm.profiler.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1200
POINTS_IN_ALL = 16_000
"""Of one metric over all devices: a picture of many is no finer, and a browser still opens it."""
COLOURS = ("#1372cb", "#9b6600", "#00704f", "#b3367a", "#6650c9", "#b5421a", "#007a8a", "#5c6370")
"""Hues of the console's light theme, told apart with every kind of sight."""
LOAD, RUN = "#d9a441", "#8fb7dd"
INK = "#22282f"


def draw(series: Sequence[Series], history: History, metrics: Sequence[str], form: str) -> bytes:
    """The picture, "svg" or "png". Raises ImportError without matplotlib; the same recording gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    busy = [one for one in series if history.of(SpanKind.TASK, one.device) or history.of(SpanKind.SERVICE, one.device)]
    lanes = 0.32 * len(busy) + 0.35 if busy else 0.0
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "gswarm", "font.size": 9, "axes.edgecolor": "#9aa1a9", "text.color": INK,
        # A name with a $ in it is no formula.
        "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.0, 0.9 + 1.5 * len(metrics) + lanes), layout="constrained")
        heights = [1.5] * len(metrics) + ([lanes] if busy else [])
        grid: Any = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        axes: list[Axes] = [row[0] for row in grid]
        figure.suptitle(_title(history), fontsize=10)
        for place, metric in zip(axes, metrics, strict=False):
            _panel(place, series, history, metric)
        if busy:
            _lanes(axes[-1], busy, history)
        for number, place in enumerate(axes):
            place.spines[["top", "right"]].set_visible(False)
            _marks(place, history, is_first=number == 0)
        axes[-1].set_xlabel("seconds from the start")
        axes[-1].set_xlim(0, max(1e-3, (history.end_us - history.start_us) / 1e6))
        if len(series) > 1 or not metrics:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels) or 1), frameon=False)
        out = BytesIO()
        figure.savefig(out, format=form, metadata={"Date": None} if form == "svg" else None, dpi=150)
    return out.getvalue()


def _title(history: History) -> str:
    simulated = any(history.is_simulated(device) for device in history.devices)
    return f"{history.name}{' (devices marked SIM exist only as numbers)' if simulated else ''}"


def _panel(place: Axes, series: Sequence[Series], history: History, metric: str) -> None:
    lines = [charts.line(one, history, metric) for one in series]
    unit = next((one.unit for one in lines if one.unit), "")
    points = max(100, min(POINTS, POINTS_IN_ALL // max(1, len(lines))))
    for number, one in enumerate(lines):
        x, y = charts.broken(one, points)
        style = "-" if number < len(COLOURS) else "--"
        place.plot(x, y, style, color=COLOURS[number % len(COLOURS)], linewidth=1.1, label=one.label)
    place.set_ylim(0, charts.top(lines) * 1.03)
    place.set_ylabel(unit)
    place.set_title(charts.title(metric), loc="left", fontsize=9)
    place.grid(axis="y", color="#e3e6ea", linewidth=0.6)
    place.set_axisbelow(True)


def _lanes(place: Axes, series: Sequence[Series], history: History) -> None:
    """A row a device: its loads and its tasks."""
    for row, one in enumerate(series):
        for spans, colour, height in (
            (history.of(SpanKind.SERVICE, one.device, "loading"), LOAD, 0.8),
            (history.of(SpanKind.TASK, one.device), RUN, 0.5),
        ):
            bars = [((s.start_us - history.start_us) / 1e6, max(s.seconds, 0.01)) for s in spans]
            place.broken_barh(bars, (row - height / 2, height), facecolors=colour, edgecolors="white", linewidth=0.4)
    place.set_yticks(range(len(series)), [charts.label(history, one.device) for one in series])
    place.set_ylim(len(series) - 0.5, -0.5)
    place.set_title("model loads (amber) and tasks (blue)", loc="left", fontsize=9)


def _marks(place: Axes, history: History, *, is_first: bool) -> None:
    """Moments as dotted lines, spans as bands."""
    named: list[tuple[float, str]] = []
    for mark in history.marks:
        if mark.time is not None:
            at = mark.time.timestamp() - history.start_us / 1e6
            place.axvline(at, color=INK, linewidth=0.8, linestyle=":")
            named.append((at, mark.message))
    for number, span in enumerate(history.of(SpanKind.MARK)):
        at = (span.start_us - history.start_us) / 1e6
        place.axvspan(at, at + span.seconds, color=INK, alpha=0.04 + 0.04 * (number % 2), linewidth=0)
        named.append((at, span.name))
    for at, text in named if is_first else ():
        place.annotate(
            text, (at, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            fontsize=8, va="top", clip_on=True,
        )  # fmt: skip
