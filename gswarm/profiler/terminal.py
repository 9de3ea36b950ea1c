"""Charts made of braille characters, for a terminal: a device a strip, NA left blank."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import numpy as np

from gswarm import units
from gswarm.profiler import charts
from gswarm.profiler.history import History
from gswarm.profiler.series import Floats, Series
from gswarm.views import printable

ROWS = 2
_EMPTY = 0x2800
_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""Bits of a braille character's left and right column, from below (Unicode 17, chapter 21.1)."""
_BRAILLE = re.compile("[\u2800-\u28ff]+")
_PLAIN = " .:-=+*#@"


def draw(series: Sequence[Series], history: History, metrics: Sequence[str], width: int) -> tuple[str, ...]:
    """Lines of at most `width` characters."""
    names = [charts.label(history, one.device) for one in series]
    left = min(24, max((len(name) for name in names), default=0)) + 2
    across = max(8, width - left - 16)
    length = max(1e-6, (history.end_us - history.start_us) / 1e6)
    out: list[str] = []
    for metric in metrics:
        lines = [charts.line(one, history, metric) for one in series]
        most = charts.top(lines)
        unit = next((one.unit for one in lines if one.unit), "")
        out.append(f"{charts.title(metric)}, 0 to {most:g} {unit}".rstrip())
        for name, one in zip(names, lines, strict=True):
            strips = _strips(_buckets(one, 2 * across, length), most, across)
            known = ~np.isnan(one.y)
            told = f"{np.average(one.y[known], weights=one.holds[known]):.0f} {unit}" if known.any() else units.NA
            for row, strip in enumerate(strips):
                head = printable(name)[: left - 2] if row == ROWS - 1 else ""
                tail = f"  mean {told}" if row == ROWS - 1 else ""
                out.append(f"{head:<{left}}{strip}{tail}".rstrip())
        out.append("")
    out += _axis(history, left, across, length)
    return tuple(line[:width] for line in out)


def _buckets(one: charts.Line, count: int, length: float) -> Floats:
    """The mean over each stretch of time, weighted with time; NaN where there is no sample.

    Each sample is spread over all stretches that it stands for.
    """
    edges = np.linspace(0, length, count + 1)
    known = ~np.isnan(one.y)
    x, y, holds = one.x[known], one.y[known], one.holds[known]
    if not len(x):
        return np.full(count, np.nan)
    first = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, count - 1)
    last = np.clip(np.searchsorted(edges, x + holds, side="left") - 1, first, count - 1)
    sums, weights = np.zeros(count), np.zeros(count)
    for begin, end, value, seconds in zip(first, last, y, holds, strict=True):
        share = seconds / (end - begin + 1) or 1e-9
        sums[begin : end + 1] += value * share
        weights[begin : end + 1] += share
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1), np.nan)


def _strips(values: Floats, most: float, across: int) -> list[str]:
    """ROWS strings, the upper first; what is 0 has one dot, what is NA none."""
    heights = np.where(np.isnan(values), 0, np.clip(np.ceil(values / most * 4 * ROWS), 1, 4 * ROWS)).astype(int)
    rows = []
    for row in reversed(range(ROWS)):
        cells = []
        for cell in range(across):
            bits = 0
            for side in (0, 1):
                for dot in range(min(4, max(0, heights[2 * cell + side] - 4 * row))):
                    bits |= _DOTS[side][dot]
            cells.append(chr(_EMPTY + bits))
        rows.append("".join(cells))
    return rows


def _axis(history: History, left: int, across: int, length: float) -> list[str]:
    """The times of start and end, and the marks where they were set."""
    out = []
    for mark in history.marks:
        if mark.time is None:
            continue
        place = int((mark.time.timestamp() - history.start_us / 1e6) / length * across)
        place = max(0, min(across - 1, place))
        text = printable(mark.message)
        at = left + place
        out.append(f"{'':<{at}}^ {text}" if place < across // 2 else f"{text} ^".rjust(at + 1))
    ends = f"0s{units.duration(length):>{max(0, across - 2)}}"
    return [f"{'':<{left}}{ends}", *out]


def coloured(picture: Sequence[str]) -> list[str]:
    """As this standard output takes it: in colour on a terminal unless NO_COLOR is set, in ASCII where it is no Unicode."""
    encoding = sys.stdout.encoding or "ascii"
    lines = list(picture)
    try:
        "\u28ff".encode(encoding)
    except UnicodeEncodeError:
        lines = [_BRAILLE.sub(lambda found: "".join(map(_ascii, found[0])), text) for text in lines]
        return [text.encode(encoding, "replace").decode(encoding) for text in lines]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        lines = [_BRAILLE.sub(lambda found: f"\x1b[36m{found[0]}\x1b[0m", text) for text in lines]
    return lines


def _ascii(cell: str) -> str:
    return _PLAIN[(ord(cell) - _EMPTY).bit_count()]
