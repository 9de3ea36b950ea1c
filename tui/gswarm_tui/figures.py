"""Short fixed-width figures for panes: sizes, counts, ages that step, clock times."""

from __future__ import annotations

from datetime import datetime

_STEPS = ("", "k", "M", "G", "T", "P")
NA = "NA"


def _scaled(value: float, base: float) -> str:
    step = 0
    while value >= 999.5 and step < len(_STEPS) - 1:
        value, step = value / base, step + 1
    digits = 1 if step and value < 9.95 else 0
    return f"{value:.{digits}f}{_STEPS[step]}"


def size(count: float | None) -> str:
    """Bytes in powers of 1024: "16G", "8.0M"; at most four characters."""
    return NA if count is None else _scaled(count, 1024.0)


def number(value: float | None) -> str:
    """A count or rate in powers of 1000: "1.3k"; at most four characters."""
    return NA if value is None else _scaled(value, 1000.0)


def gib(count: float | None) -> str:
    """Bytes as whole GiB for a column whose heading carries the cap; one decimal below 1."""
    if count is None:
        return NA
    value = count / 2**30
    return f"{value:.1f}" if 0 < value < 0.95 else f"{value:.0f}"


def percent(value: float | None) -> str:
    return NA if value is None else f"{value:.0f}"


def span(seconds: float | None) -> str:
    """A wait or an age that steps, so that it seldom changes: 1 s, from 10 s by 5 s, from 1 min by minutes."""
    if seconds is None:
        return NA
    s = max(0, int(seconds))
    if s < 10:
        return f"{s}s"
    if s < 60:
        return f"{s - s % 5}s"
    if s < 3600:
        return f"{s // 60}m"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}"
    return f"{s // 86400}d{s % 86400 // 3600:02d}"


def seconds(value: float | None) -> str:
    """A measured duration: "6.1s", "410ms", "2m05"."""
    if value is None:
        return NA
    if value < 1:
        return f"{value * 1000:.0f}ms"
    if value < 100:
        return f"{value:.1f}s"
    return f"{int(value) // 60}m{int(value) % 60:02d}"


def ahead(value: float) -> str:
    """A mark on a time axis: "+50s", "+1m40", "+2m"."""
    s = round(value)
    if s < 60:
        return f"+{s}s"
    if s < 3600:
        return f"+{s // 60}m{s % 60:02d}" if s % 60 else f"+{s // 60}m"
    return f"+{s // 3600}h{s % 3600 // 60:02d}"


def clock(time: datetime | None, *, with_seconds: bool = False) -> str:
    """Wall-clock time where the reader sits."""
    if time is None:
        return NA
    return time.astimezone().strftime("%H:%M:%S" if with_seconds else "%H:%M")
