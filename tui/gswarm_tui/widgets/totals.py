"""The first line: is it healthy, how much of it is used; parts drop by priority and are never cut."""

from __future__ import annotations

from .. import figures
from ..snapshot import Link, Replay
from ..view import Totals
from .spans import Span, Spans, width


def link_spans(t: Totals) -> Spans:
    """The link's glyph, word and, when not live, its age."""
    if t.link is Link.LIVE:
        return (("● ", "ready"), ("live", "text"))
    if t.link is Link.STALE:
        age = f" {figures.span(t.age_s)}" if t.age_s is not None else ""
        return (("◐ ", "changing"), (f"stale{age}, reconnecting", "changing"))
    return (("◌ ", "changing"), ("connecting", "changing"))


def replay_spans(replay: Replay, now: str) -> Spans:
    """The amber header of a replay, or of the past of a live host, which is only the samples'."""
    speed = "paused" if replay.is_paused else f"×{replay.speed:g}"
    if replay.at is not None:
        then = figures.clock(replay.at, with_seconds=True)
        return (("▸ past ", "changing*"), (f"samples of {then} {speed}", "changing*"), (", state of now", "changing"))
    return (("▸ replay ", "changing*"), (replay.name, "changing*"), (f" {now} {speed}", "changing*"))


def totals(t: Totals, cells: int, replay: Replay | None = None) -> tuple[Spans, Spans]:
    """Left and right part of the line for `cells` cells."""
    memory = figures.size(t.memory)
    total = figures.size(t.memory_total)
    if memory[-1:] == total[-1:] and not memory[-1:].isdigit():
        memory = memory[:-1]
    now = figures.clock(t.now, with_seconds=cells >= 96)
    head: Spans = replay_spans(replay, figures.clock(t.now, with_seconds=True)) if replay else link_spans(t)
    # (rank to keep, spans) in screen order; the lowest ranks go first when there is no room
    parts: list[tuple[int, Spans]] = [
        (100, (("gswarm", "key"),)),
        (99, head),
        (1, ((t.host, "dim"),)),
        (2, ((str(t.nodes), "strong"), (" nodes" if t.nodes != 1 else " node", "dim"))),
        (3, ((str(t.devices), "strong"), (" devices" if t.devices != 1 else " device", "dim"))),
        (9, (("util ", "dim"), (figures.percent(t.util), "strong"), ("%" if t.util is not None else "", "dim"))),
        (7, (("mem ", "dim"), (memory, "strong"), (f"/{total}", "dim"))),
        (4, (_power(t.watts),)),
        (5, ((figures.number(t.tokens_per_s), "strong"), (" tok/s", "dim"))),
        (8, (("queue ", "dim"), (str(t.queue), "strong"))),
    ]
    if t.watts is not None:
        parts[7] = (4, ((_kilowatts(t.watts), "strong"), (" kW", "dim")))
    alarm: tuple[Span, ...] = ()
    if t.alarms and t.link is not Link.CONNECTING:
        count = len(t.alarms)
        words = f" alarm{'s' if count > 1 else ''}" if cells >= 96 else ""
        alarm = ((f"▲ {count}{words}  ", "changing"),)
    right: Spans = (*alarm, (now, "dim"))
    if t.link is Link.CONNECTING:
        parts = [parts[0], parts[1], (98, ((t.host, "dim"),))]
    if replay:
        parts = [p for p in parts if p[0] != 1]  # the head has its name
    # the address and the node count come only where there is room for all, as the layout table says
    if t.link is not Link.CONNECTING:
        dropped = {80: {1, 2, 3, 4, 5}, 100: {1, 2, 3, 4}, 120: {1, 2}}
        gone = next((ranks for size, ranks in dropped.items() if cells <= size), set())
        parts = [p for p in parts if p[0] not in gone]
    room = cells - 3 - width(right)
    while sum(width(s) for _, s in parts) + 3 * (len(parts) - 1) > room and len(parts) > 2:
        parts.remove(min(parts, key=lambda part: part[0]))
    left: list[Span] = []
    for i, (_, spans) in enumerate(parts):
        if i:
            left.append(("   " if i > 1 else "  ", "text"))
        left.extend(spans)
    return tuple(left), right


def _kilowatts(watts: float) -> str:
    return f"{watts / 1000:.1f}" if watts < 99950 else f"{watts / 1000:.0f}"


def _power(watts: float | None) -> Span:
    return (f"power {figures.NA}", "dim") if watts is None else (f"{_kilowatts(watts)} kW", "dim")
