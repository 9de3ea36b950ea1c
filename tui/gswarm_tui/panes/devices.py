"""Devices and plan: left what each device is, right what it does now and next; nodes fold until all fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType

from gswarm.scheduler.lanes import initials

from .. import figures
from ..layout import LANES
from ..view import DeviceView, NodeView, View
from ..widgets.gauge import bar
from ..widgets.lanes import axis, lane, zoomed
from ..widgets.spans import Span, Spans
from ..widgets.sparkline import cell
from ..widgets.table import Column, Content, Row
from .base import Pane

if TYPE_CHECKING:
    from ..deeds import Deed


@dataclass(frozen=True, slots=True)
class Caps:
    """Caps that all devices share, for headings; None where they differ."""

    memory: int | None
    watts: float | None


def caps(devices: tuple[DeviceView, ...]) -> Caps:
    gpus = [d for d in devices if not d.is_cpu]
    memory = {d.memory_total for d in gpus}
    watts = {d.cap_w for d in gpus if d.cap_w is not None}
    return Caps(memory.pop() if len(memory) == 1 else None, watts.pop() if len(watts) == 1 else None)


def folded(nodes: tuple[NodeView, ...], room: int, cursor_node: str) -> set[str]:
    """Names of the nodes that fold so that every device is on screen: the cursor's stays open first, then in order."""
    closed = {node.name for node in nodes if node.devices}
    used = len(nodes)
    order = sorted((n for n in nodes if n.devices), key=lambda n: n.name != cursor_node)
    for node in order:
        more = len(node.devices) - 1
        if used + more <= room:
            closed.discard(node.name)
            used += more
    return closed


class DevicesPane(Pane):
    """Every device on screen, each with its plan lane."""

    number = 1
    title = "Devices and plan"
    domain = "device"
    key_order = "sPT"
    extra_keys: ClassVar[dict[str, str]] = {"s": "model serve", "P": "profiler start", "T": "profiler topology"}
    detail = "device show"
    filter_field = "alias"
    listing = "device list"
    kind = "device"
    empty = (
        "no devices yet; start an agent on a machine",
        "$ gswarm client connect HOST:8090",
        "$ gswarm up --simulate 8xH100",
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "zoom(-1)", "Zoom in", show=False, id="lanes.zoom_in"),
        Binding("greater_than_sign", "zoom(1)", "Zoom out", show=False, id="lanes.zoom_out"),
    ]

    cell_s = 5
    open_node = ""
    """The node that stays open: the one the cursor was in last, or that was opened with enter."""

    def action_open(self) -> None:
        """Enter: a folded node opens, a device shows its page."""
        key = self.cursor_key or ""
        if not key.startswith("node/") or self.view is None:
            super().action_open()
            return
        self.open_node = key.removeprefix("node/")
        self.show(self.view)
        first = next((d.id for d in self.view.devices if d.node == self.open_node), "")
        self.move_to_key(first)

    def action_zoom(self, step: int) -> None:
        self.cell_s = zoomed(self.cell_s, step)
        if self.view is not None:
            self.show(self.view)

    def columns_for(self, view: View, width: int) -> tuple[tuple[Column, ...], int]:
        """The columns for an inner width, and the lane's cells."""
        devices = view.devices
        shared = caps(devices)
        name = 10
        longest = max((len(_name(d, view)) for d in devices), default=0)
        if longest > name - 1 and width >= 96:
            name = min(longest + 1, 20 if width >= 150 else 16)
        wide, medium = width >= 116, width >= 96
        memory = f"MEM/{figures.size(shared.memory)}" if shared.memory else "MEM G"
        watts = f"W/{shared.watts:.0f}" if shared.watts else "W"
        columns = [
            Column("DEVICE", name, gap=0),
            Column("UTIL", 8, gap=0),
            Column("", 4, "right", gap=0),
        ]
        if wide:
            columns += [
                Column(memory, 5, gap=1, heading=((memory[:5], "dim"),)),
                Column("", 4, "right", gap=0, heading=((memory[5:].ljust(4)[:4], "dim"),)),
            ]
        else:
            columns += [Column(memory, 8, "right", gap=1)]
        columns += [Column(watts, 7, "right", gap=0)]
        if medium:
            columns += [Column("°C", 4, "right", gap=0)]
        used = 1 + sum(c.width + c.gap for c in columns)
        cells = max(0, width - used - 2 - 1)
        columns.append(Column("", cells, gap=2, heading=axis(cells, self.cell_s)))
        return tuple(columns), cells

    def draw(self, view: View, width: int, height: int) -> Content:
        columns, cells = self.columns_for(view, width)
        short = initials(b.model for d in view.devices for b in d.blocks)
        cursor = self.cursor_key or ""
        self.open_node = next((n.name for n in view.nodes if any(d.id == cursor for d in n.devices)), self.open_node)
        closed = set() if self.filter_text else folded(view.nodes, max(1, height - 1), self.open_node)
        now = view.totals.now.timestamp()
        rows: list[Row] = []
        room = max(1, height - 1)
        spare = room - sum(1 if n.name in closed else max(1, len(n.devices)) for n in view.nodes)
        for node in view.nodes:
            shown = node.devices
            if node.name in closed:  # the first that folds shows as many of its devices as there is room for
                shown, spare = node.devices[: max(0, spare)], 0
            rows += [self._row(view, device, columns, cells, now, short) for device in shown]
            if node.name in closed or not node.devices:
                rows.append(self._folded(node, columns, cells))
        folds = [n.name for n in view.nodes if n.name in closed]
        title = f"{self.number} {self.title}"
        if width < 90:
            title = "by node"
        if len(view.nodes) == 1:
            title += f" · {view.nodes[0].name}"
        elif width >= 90:
            title += " · by node"
        if folds and width < 90:
            names = " ".join(folds) if len(folds) < 5 else f"{len(folds)} nodes"
            title += f" · {names} folded"
        return Content(columns, tuple(rows), title=title, subtitle=plan_line(view, width))

    def _row(
        self, view: View, d: DeviceView, columns: tuple[Column, ...], cells: int, now: float, short: dict[str, str]
    ) -> Row:
        tone = "dim" if d.is_idle or d.trouble else "text"
        shared = d.memory / d.memory_total if d.memory is not None and d.memory_total else None
        label = _name(d, view)
        name: list[Span] = [(label.removesuffix(" SIM"), tone)]
        if label.endswith(" SIM"):
            name.append((" SIM", "faint"))
        memory_style = f"hue{d.holds[0] % 8}" if d.holds else "bar"
        out: list[Spans] = [
            tuple(name),
            bar(None if d.util is None else d.util / 100, 8),
            ((figures.percent(d.util), tone),),
        ]
        if columns[3].width == 5:
            out.append(bar(shared, 5, memory_style))
        out.append(((figures.gib(d.memory), tone),))
        watts = figures.number(d.watts) if d.watts is not None and d.watts >= 10000 else figures.percent(d.watts)
        out.append(((watts, tone),))
        if len(columns) > len(out) + 1:
            out.append(((figures.percent(d.celsius), tone),))
        if d.trouble:
            out.append((("× ", "failed"), (f"{d.trouble}, no plan", "failed")))
        else:
            out.append(lane(d.blocks, now, cells, self.cell_s, short, self._paint().form))
        return Row(d.id, tuple(out), search=f"{d.alias} {d.node} {d.name} {' '.join(b.model for b in d.blocks)}")

    def _folded(self, node: NodeView, columns: tuple[Column, ...], cells: int) -> Row:
        utils = [d.util for d in node.devices if d.util is not None]
        memories = [d.memory for d in node.devices if d.memory is not None]
        powers = [d.watts for d in node.devices if d.watts is not None]
        heats = [d.celsius for d in node.devices if d.celsius is not None]
        marks: list[Span] = []
        for d in node.devices[:8]:
            marks.append(("×", "failed") if d.trouble else (cell(d.util), "bar"))
        out: list[Spans] = [
            (("▸ ", "dim"), (node.name, "strong")),
            tuple(marks),
            ((figures.percent(sum(utils) / len(utils) if utils else None), "text"),),
        ]
        total = sum(d.memory_total for d in node.devices)
        if columns[3].width == 5:
            out.append(bar(sum(memories) / total if total and memories else None, 5))
        out.append(((figures.gib(sum(memories) if memories else None), "text"),))
        out.append(((figures.number(sum(powers) if powers else None), "text"),))
        if len(columns) > len(out) + 1:
            out.append(((figures.percent(max(heats) if heats else None), "text"),))
        tail: list[Span] = []
        counts: dict[tuple[int, str], int] = {}
        for d in node.devices:
            if d.holds:
                counts[d.holds] = counts.get(d.holds, 0) + 1
        for d in node.devices:
            if d.trouble:
                tail += [("× ", "failed"), (f"{d.short} {d.trouble}  ", "failed")]
        for (hue, model), count in sorted(counts.items(), key=lambda item: -item[1]):
            tail += [("▌", f"hue{hue % 8}"), (f"{model} ×{count}  ", "dim")]
        out.append(tuple(tail))
        return Row(f"node/{node.name}", tuple(out), search=" ".join(d.alias for d in node.devices))

    def subject(self) -> str | None:
        key = self.cursor_key
        if key is None or self.view is None or key.startswith("node/"):
            return None
        return next((d.alias for d in self.view.devices if d.id == key), key)

    def values_for(self, deed: Deed) -> dict[str, Any]:
        """The device; and its node, for a recording of these."""
        out = super().values_for(deed)
        key = (self.cursor_key or "").removeprefix("node/")
        node = (
            next((n.name for n in self.view.nodes if n.name == key or any(d.id == key for d in n.devices)), "")
            if self.view
            else ""
        )
        if deed.domain == "profiler" and node:
            out.update({f.name: [node] if f.is_list else node for f in deed.fields if f.ref == "node"})
        return out


class LanesPane(DevicesPane):
    """Lanes of the whole fleet, above the queue when that is in full."""

    number = LANES

    def draw(self, view: View, width: int, height: int) -> Content:
        name = max(10, min(16, max((len(_name(d, view)) for d in view.devices), default=0) + 1))
        cells = max(0, width - 1 - name - 1)
        short = initials(b.model for d in view.devices for b in d.blocks)
        now = view.totals.now.timestamp()
        columns = (Column("", name, gap=0), Column("", cells, gap=0, heading=axis(cells, self.cell_s)))
        rows = []
        for d in view.devices:
            body: Spans = (("× ", "failed"), (f"{d.trouble}, no plan", "failed"))
            if not d.trouble:
                body = lane(d.blocks, now, cells, self.cell_s, short, self._paint().form)
            rows.append(Row(d.id, (((_name(d, view), "text" if not d.is_idle else "dim"),), body), search=d.alias))
        return Content(
            columns, tuple(rows), title=f"4 Queue · lanes, {self.cell_s} s a cell", subtitle=plan_line(view, width)
        )


def _name(d: DeviceView, view: View) -> str:
    name = d.short if len(view.nodes) == 1 else d.alias
    return f"{name} SIM" if d.is_simulated else name


def plan_line(view: View, width: int) -> str:
    """What the border says of the plan."""
    plan = view.plan
    if plan is None:
        return "no plan yet"
    if not plan.ready and not plan.running and not plan.blocked and not any(d.blocks for d in view.devices):
        return "nothing queued"
    parts = [f"swaps {plan.swaps}, first-come {plan.swaps_first_come}"]
    if plan.done_at is not None:
        seen = f"{plan.runs_seen} runs seen" if plan.runs_seen else "a guess, no runs seen"
        if width >= 96:
            until, after = ("planned to", f", {plan.beyond} after that") if plan.beyond else ("plan done", "")
            parts.append(f"{until} ≈{figures.clock(plan.done_at)} ({seen}){after}")
        else:
            until, after = ("to", f", +{plan.beyond}") if plan.beyond else ("done", "")
            parts.append(f"{until} ≈{figures.clock(plan.done_at)}{'' if plan.runs_seen else '?'}{after}")
    if plan.oldest_wait_s > 0:
        bound = f" of {plan.wait_bound_s:.0f}s" if plan.wait_bound_s and width >= 96 else ""
        parts.append(f"oldest waits {figures.span(plan.oldest_wait_s)}{bound}")
    return " · ".join(parts)
