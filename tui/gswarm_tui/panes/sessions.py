"""Sessions: recordings, which one runs, how much it holds."""

from __future__ import annotations

from typing import ClassVar

from gswarm.profiler.types import Session, SessionPhase

from .. import figures
from ..view import View
from ..widgets.spans import Spans
from ..widgets.table import Column, Content, Row
from .base import Pane

_STATES = {
    SessionPhase.RECORDING: ("●", "ready"),
    SessionPhase.PAUSED: ("◐", "changing"),
    SessionPhase.STOPPED: ("○", "dim"),
    SessionPhase.SEALED: ("○", "dim"),
}

LEAST_WITH_TAGS = 20
"""Cells for nodes and tags together; with fewer only the nodes are shown."""


class SessionsPane(Pane):
    """Recording sessions."""

    number = 5
    title = "Sessions"
    domain = "profiler"
    key_order = "nxmtapcgRED"
    extra_keys: ClassVar[dict[str, str]] = {
        "n": "profiler start",
        "x": "profiler stop",
        "m": "profiler mark",
        "t": "profiler tag",
        "c": "profiler compare",
        "g": "profiler pull",
        "E": "profiler export",
    }
    detail = "profiler info"
    listing = "profiler list"
    kind = "session"
    empty = ("no recordings yet", "$ gswarm profiler start --name run-1", "or press n")

    def draw(self, view: View, width: int, height: int) -> Content:
        name = max(10, min(24, max((len(s.name) for s in view.sessions), default=0)))
        room = max(0, width - name - 58)
        longest = max((len(" ".join(s.nodes)) for s in view.sessions), default=0)
        nodes = max(5, min(room // 2, longest)) if room >= LEAST_WITH_TAGS else room
        columns = (
            Column("NAME", name, gap=0),
            Column("STATE", 12),
            Column("STARTED", 8),
            Column("LENGTH", 6, "right"),
            Column("TICKS", 6, "right"),
            Column("EVENTS", 6, "right"),
            Column("SIZE", 5, "right"),
            Column("NODES", nodes, gap=2),
            Column("TAGS", max(0, room - nodes - 2), gap=2),
        )
        recording = sum(s.phase is SessionPhase.RECORDING for s in view.sessions)
        subtitle = f"{len(view.sessions)}" + (f" · {recording} recording" if recording else "")
        return Content(columns, tuple(self._row(s, view) for s in view.sessions), subtitle=subtitle)

    def _row(self, s: Session, view: View) -> Row:
        glyph, tone = _STATES.get(s.phase, ("◌", "dim"))
        end = s.stopped_at or view.totals.now
        length = (end - s.started_at).total_seconds() if s.started_at else None
        word = s.detail if s.phase is SessionPhase.PAUSED and s.detail else s.phase.value
        cells: tuple[Spans, ...] = (
            ((s.name, "text"),),
            ((f"{glyph} ", tone), (word, "text" if tone == "ready" else tone)),
            ((figures.clock(s.started_at, with_seconds=True), "dim"),),
            ((figures.span(length), "text"),),
            ((figures.number(s.ticks), "text"),),
            ((figures.number(s.events), "text"),),
            ((figures.size(s.size_bytes), "text"),),
            ((" ".join(s.nodes) or "all", "dim"),),
            ((" ".join(f"{key}={value}" for key, value in sorted(s.tags.items())), "dim"),),
        )
        started = s.started_at.timestamp() if s.started_at else 0.0
        values = (s.name, s.phase.value, started, length or 0.0, float(s.ticks), float(s.events), float(s.size_bytes))
        return Row(s.name, cells, values=values, search=f"{s.actor} {s.path}")
