"""The time line of a replay: how dense events are, where marks and alarms stand, where the cursor is."""

from __future__ import annotations

from datetime import datetime

from .. import figures
from ..snapshot import Replay
from .spans import Span, Spans

_LEVELS = "·▁▂▃▄▅▆▇"


def fraction(replay: Replay, now: datetime) -> float:
    """Where `now` stands between start and end."""
    whole = (replay.end - replay.start).total_seconds()
    return max(0.0, min(1.0, (now - replay.start).total_seconds() / whole)) if whole > 0 else 0.0


_CLOCK = len("00:00:00 ")


def moment_at(replay: Replay, x: int, cells: int) -> datetime:
    """The moment that cell `x` of a time line of `cells` stands for; the nearer end beside the line."""
    room = max(1, cells - 2 * _CLOCK)
    share = max(0.0, min(1.0, (x - _CLOCK) / room))
    return replay.start + (replay.end - replay.start) * share


def timeline(replay: Replay, now: datetime, cells: int) -> Spans:
    """One line of exactly `cells` cells: the start's clock, the line, the end's clock."""
    start = f"{figures.clock(replay.start, with_seconds=True)} "
    end = f" {figures.clock(replay.end, with_seconds=True)}"
    room = max(1, cells - 2 * _CLOCK)
    most = max(replay.density, default=0)
    line: list[Span] = []
    for x in range(room):
        share = replay.density[int(x * len(replay.density) / room)] if replay.density else 0
        level = 0 if not most or not share else max(1, round(share / most * (len(_LEVELS) - 1)))
        line.append((_LEVELS[level], "dim" if level else "track"))
    for at, kind in replay.marks:
        x = min(room - 1, int(at * room))
        line[x] = ("×", "failed") if kind == "alarm" else ("▲", "focus")
    line[min(room - 1, int(fraction(replay, replay.at or now) * room))] = ("┃", "changing*")
    return ((start, "dim"), *line, (end, "dim"))
