"""Charts as SVG elements for a page: strings without scripts. The page's style has the colours of light and dark;
those here are for readers that do not apply it to drawings, such as some that print or mail."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from gswarm import units
from gswarm.profiler import charts
from gswarm.profiler.history import History, Span
from gswarm.profiler.series import Floats

WIDTH, HEIGHT = 720, 96
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 8, 16
POINTS = 360
LANE = 22
LABEL_MOST, LETTER = 280, 6.2
INK, DIM, EDGE, BLUE = "#22282f", "#5c6370", "#dde1e6", "#1372cb"
_FILLS = {
    "loading": "#b97a00",
    "failed": "#b3261e",
    "task": "#7fb0dc",
    "service": "#cfe3d8",
    "download": "#00704f",
    "mark": EDGE,
}


def chart(line: charts.Line, history: History, most: float) -> str:
    """One metric of one device over the recording, its marks as dotted lines."""
    length = _length(history)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x, y = charts.broken(line, POINTS)
    places = np.column_stack((LEFT + x / length * across, TOP + (1 - y / most) * down))
    what = f"{charts.title(line.metric)} of {line.label}"
    parts = [_open(what, WIDTH, HEIGHT)]
    for share in (0.0, 0.5, 1.0):
        at = TOP + share * down
        told = f"{most * (1 - share):g}"
        parts.append(f'<line class="grid" stroke="{EDGE}" x1="{LEFT}" y1="{at:g}" x2="{WIDTH - RIGHT}" y2="{at:g}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{at + 3.5:g}" text-anchor="end">{told}</text>')
    parts += _marks(history, LEFT, across, TOP, TOP + down)
    parts.append(f'<path class="line" fill="none" stroke="{BLUE}" d="{_path(places)}"/>')
    parts.append(_ends(history, LEFT, WIDTH - RIGHT, HEIGHT - 3))
    return "".join([*parts, "</svg>"])


def _path(places: Floats) -> str:
    """Lines through known points; a lone one becomes a dot, for a round line cap draws it."""
    words: list[str] = []
    pen = "M"
    for x, y in places.tolist():
        if y != y:
            pen = "M"
            continue
        words.append(f"{pen}{x:.1f} {y:.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(words)


def timeline(rows: Sequence[tuple[str, Sequence[Span]]], history: History) -> str:
    """A lane a row, a box a span, coloured by what it is; what it was shows under the pointer."""
    length = _length(history)
    left = min(LABEL_MOST, round(16 + LETTER * max((len(label) for label, _ in rows), default=0)))
    across = WIDTH - left - RIGHT
    bottom = TOP + LANE * max(1, len(rows))
    height = bottom + BOTTOM + 14
    parts = [_open("loads, tasks and marks", WIDTH, height)]
    parts += _marks(history, left, across, TOP, bottom, named=True)
    for number, (label, spans) in enumerate(rows):
        at = TOP + number * LANE
        parts.append(f'<text class="axis" x="{left - 8}" y="{at + 14}" text-anchor="end">{escape(label)}</text>')
        parts.append(
            f'<line class="grid" stroke="{EDGE}" x1="{left}" y1="{at + LANE}" x2="{WIDTH - RIGHT}" y2="{at + LANE}"/>'
        )
        for span in spans:
            x = left + (span.start_us - history.start_us) / 1e6 / length * across
            wide = max(1.0, span.seconds / length * across)
            kind = f"{span.kind.value} {span.phase}"
            fill = _FILLS.get(span.phase) or _FILLS.get(span.kind.value, DIM)
            about = " ".join(
                filter(None, (span.kind.value, span.name, span.model, span.phase, units.duration(span.seconds)))
            )
            parts.append(
                f'<rect class="{escape(kind)}" fill="{fill}" x="{x:.1f}" y="{at + 4}" width="{wide:.1f}" height="{LANE - 8}" rx="2">'
                f"<title>{escape(about)}</title></rect>"
            )
    parts.append(_ends(history, left, WIDTH - RIGHT, bottom + 12))
    return "".join([*parts, "</svg>"])


def _open(what: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-size="11" fill="{DIM}" aria-label="{escape(what)}"><title>{escape(what)}</title>'
    )


def _length(history: History) -> float:
    return max(1e-3, (history.end_us - history.start_us) / 1e6)


def _marks(history: History, left: int, across: int, top: int, bottom: int, *, named: bool = False) -> list[str]:
    parts = []
    for mark in history.marks:
        if mark.time is None:
            continue
        share = (mark.time.timestamp() - history.start_us / 1e6) / _length(history)
        x = left + min(1.0, max(0.0, share)) * across
        about = f"<title>{escape(mark.message)}</title>"
        parts.append(
            f'<line class="mark" stroke="{INK}" stroke-dasharray="2 3" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}">{about}</line>'
        )
        if named:
            side = "end" if share > 0.7 else "start"
            parts.append(
                f'<text class="mark" x="{x:.1f}" y="{bottom + 24}" text-anchor="{side}">{escape(mark.message)}</text>'
            )
    return parts


def _ends(history: History, left: int, right: int, y: int) -> str:
    told = units.duration(_length(history))
    return (
        f'<text class="axis" x="{left}" y="{y}">0s</text>'
        f'<text class="axis" x="{right}" y="{y}" text-anchor="end">{told}</text>'
    )
