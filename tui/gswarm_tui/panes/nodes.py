"""Nodes: the machines, how they stand, what they bring."""

from __future__ import annotations

from .. import figures
from ..view import NodeView, View
from ..widgets.spans import Spans
from ..widgets.table import Column, Content, Row
from .base import Pane


class NodesPane(Pane):
    """The machines of the swarm."""

    number = 6
    title = "Nodes"
    domain = "node"
    detail = "node show"
    listing = "node list"
    kind = "node"
    empty = ("no node has joined yet", "$ gswarm client connect HOST:8090")

    def draw(self, view: View, width: int, height: int) -> Content:
        name = max(8, min(24, max((len(n.name) for n in view.nodes), default=0)))
        columns = (
            Column("NODE", name, gap=0),
            Column("STATE", 12),
            Column("DEVICES", 7, "right"),
            Column("CPUS", 4, "right"),
            Column("MEM", 5, "right"),
            Column("STORE", 5, "right"),
            Column("VERSION", 9, gap=2),
            Column("BACKENDS", 24),
            Column("NOTE", max(0, width - name - 79)),
        )
        ready = sum(n.state.word == "ready" for n in view.nodes)
        return Content(columns, tuple(self._row(n) for n in view.nodes), subtitle=f"{ready} ready of {len(view.nodes)}")

    def _row(self, n: NodeView) -> Row:
        tone = n.state.tone.value
        note = n.detail or ("SIM devices" if n.node.simulated else "")
        cells: tuple[Spans, ...] = (
            ((n.name, "text"),),
            ((f"{n.state.glyph} ", tone), (n.state.word, "text" if tone == "ready" else tone)),
            ((str(len(n.devices)), "text"),),
            ((str(n.node.cpu_count) if n.node.cpu_count else figures.NA, "text"),),
            ((figures.size(n.node.memory_bytes or None), "text"),),
            ((figures.size(n.node.store_free_bytes or None), "text"),),
            ((n.node.version or figures.NA, "dim"),),
            ((" ".join(n.node.backends) or "none", "dim"),),
            ((note, "dim"),),
        )
        values = (n.name, n.state.word, float(len(n.devices)), float(n.node.cpu_count), float(n.node.memory_bytes))
        return Row(n.name, cells, values=values, search=f"{n.node.platform} {n.node.peer_host}")
