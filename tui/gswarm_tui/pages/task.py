"""One task: why it waits, against which bound, when it starts and where, device by device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from textual.widget import Widget

from gswarm.queue.types import Explanation, Takes, Task, TaskPhase, Verdict
from gswarm.scheduler.lanes import initials

from .. import figures
from ..model_state import explanation
from ..view import DeviceView, TaskView, View
from ..widgets.board import Board
from ..widgets.gauge import bar
from ..widgets.lanes import ZOOMS, axis, lane
from ..widgets.spans import Span, Spans
from ..widgets.table import Column, Content, Row
from .page import Listing, Page

if TYPE_CHECKING:
    from ..deeds import Deed


_MARKS = {
    Takes.YES: ("●", "ready", "yes"),
    Takes.COULD: ("◐", "changing", "could"),
    Takes.NO: ("○", "dim", "no"),
}


class TaskPage(Page):
    """A task's page; the subject is its id."""

    domain: ClassVar[str] = "task"
    AUTO_FOCUS = "#verdicts"
    deed_keys: ClassVar[dict[str, str]] = {
        "s": "model serve", "c": "queue cancel", "R": "queue retry", "P": "queue priority", "H": "queue hold",
    }  # fmt: skip

    def body(self) -> Iterable[Widget]:
        yield Board(self.app.paint, "why", id="why")
        yield Listing(self, "device by device, soonest first", id="verdicts")
        yield Board(self.app.paint, "where it would ride", id="ride")

    def crumbs(self, view: View) -> Spans:
        task = self.app.snapshot.tasks.get(self.subject)
        out: list[Span] = [("‹ Queue ‹ ", "dim"), (f"task {self.subject}", "key")]
        if task is None:
            return (*out, ("  is no longer in the queue", "dim"))
        hue = next((m.hue for m in view.models if m.name == task.model), None)
        out += [(f"   {task.type.value} · ", "dim")]
        if task.model:
            out += [(task.model, "text" if hue is None else f"hue{hue % 8}"), (" · ", "dim")]
        out += [(f"{task.actor or 'someone'} · priority {task.priority.value} · {task.workflow_id}", "dim")]
        return tuple(out)

    def echo_line(self) -> str:
        return f"gswarm queue explain {self.subject}"

    def values_for(self, deed: Deed) -> dict[str, Any]:
        task = self.app.snapshot.tasks.get(self.subject)
        listing = self.query_one("#verdicts", Listing)
        device = self.app.snapshot.devices.get(listing.cursor_key or "")
        out: dict[str, Any] = {}
        for f in deed.fields:
            if f.ref == "task":
                out[f.name] = [self.subject] if f.is_list else self.subject
            elif f.ref == "model" and task is not None and task.model:
                out[f.name] = task.model
            elif f.ref == "device" and device is not None:
                out[f.name] = [device.alias] if f.is_list else device.alias
        return out

    def draw(self, view: View) -> None:
        task = self.app.snapshot.tasks.get(self.subject)
        if task is None:
            return
        found = explanation(task, self.app.snapshot)
        shown = next((t for t in view.tasks if t.id == task.id), None)
        self._why(task, found, shown, view)
        self._table(found, view)
        self._ride(task, found, view)

    def _why(self, task: Task, found: Explanation, shown: TaskView | None, view: View) -> None:
        word = {TaskPhase.READY: "waiting", TaskPhase.BACKOFF: "waiting"}.get(task.phase, task.phase.value)
        tone = "failed" if task.phase is TaskPhase.FAILED else "text"
        reason = found.reason.removeprefix(f"{word} ")
        because = ", because " if task.phase in (TaskPhase.READY, TaskPhase.FAILED) else " "
        lines: list[Spans] = [((word, tone), (because if reason else "", "dim"), (reason, "strong"))]
        if found.waits_s is not None:
            waited = figures.span(found.waits_s)
            if bound := found.wait_bound_s:
                late = shown is not None and shown.is_late
                share = bar(found.waits_s / bound, 30, "changing" if late else "bar")
                lines.append((("waits    ", "dim"), *share, (f"  {waited} of at most {bound:.0f} s", "text")))
            else:
                lines.append((("waits    ", "dim"), (waited, "text")))
        if found.expected_start is not None:
            past = found.expected_start <= view.totals.now
            when = "now" if past else f"≈{figures.clock(found.expected_start, with_seconds=True)}"
            where: Spans = ((f" on {found.expected_on}   ", "text"), (found.basis, "dim"))
            lines.append((("starts   ", "dim"), (when, "strong"), *where))
        elif task.phase is TaskPhase.READY:
            lines.append((("starts   ", "dim"), ("unknown: not in the plan", "text")))
        if found.needs:
            lines.append((("needs    ", "dim"), (found.needs, "text")))
        self.query_one("#why", Board).put(tuple(lines), is_stale=view.is_stale)

    def _table(self, found: Explanation, view: View) -> None:
        width = self.size.width
        name = max(10, min(20, max((len(v.device) for v in found.verdicts), default=0) + 1))
        change = min(48, max((len(v.change) for v in found.verdicts), default=0) + 1) if width >= 100 else 0
        change = max(change, 22) if change else 0
        columns = [
            Column("DEVICE", name, gap=0),
            Column("TAKES IT", 9, gap=0),
            Column("STARTS", 9),
            Column("WHY", width - 4 - name - 9 - 10 - change - 3),
        ]
        if change:
            columns.append(Column("WHAT WOULD CHANGE IT", change))
        ids = {d.alias: d for d in view.devices}
        rows = tuple(_row(v, ids.get(v.device), bool(change), view) for v in found.verdicts)
        counts = {takes: sum(v.takes is takes for v in found.verdicts) for takes in _MARKS}
        subtitle = " · ".join(f"{n} {takes.value}" for takes, n in counts.items() if n)
        note: tuple[Spans, ...] = () if rows else ((("no device is asked now", "dim"),),)
        title = "device by device, soonest first"
        content = Content(tuple(columns), rows, note, view.is_stale, title, subtitle)
        self.query_one("#verdicts", Listing).load(content)

    def _ride(self, task: Task, found: Explanation, view: View) -> None:
        board = self.query_one("#ride", Board)
        now = view.totals.now.timestamp()
        by_alias = {d.alias: d for d in view.devices}
        asked = [by_alias[v.device] for v in found.verdicts if v.device in by_alias] or list(view.devices)
        nearest = [d for d in asked if d.blocks][:4]
        mine = next(((d, b) for d in view.devices for b in d.blocks if task.id in b.task_ids), None)
        if mine is not None and mine[0] not in nearest:
            nearest = [mine[0], *nearest[:3]]
        short = initials(b.model for d in view.devices for b in d.blocks)
        name = max((len(d.alias) for d in nearest), default=8) + 2
        cells = board.size.width - 2 - name
        cell_s = 5
        if mine is not None:
            cell_s = next((z for z in ZOOMS[1:] if (mine[1].start - now) / z < cells * 0.6), ZOOMS[-1])
        form = self.app.paint().form
        lines: list[Spans] = [((" " * name, "text"), *axis(cells, cell_s))]
        for d in nearest:
            lines.append(((f"{d.alias:<{name}}", "text"), *lane(d.blocks, now, cells, cell_s, short, form)))
        if mine is not None:
            at = max(0, int(mine[1].start // cell_s) - int(now // cell_s))
            others = " ".join(i for i in mine[1].task_ids if i != task.id)
            word = "runs" if mine[1].is_running else "starts"
            text = f"▲ {word} here" + (f", in batch with {others}" if others else "")
            text = text[: max(0, cells)]
            indent = " " * min(at, max(0, cells - len(text)))
            lines.append(((f"{task.id:<{name}}", "key"), (indent, "text"), (text, "key")))
        elif not nearest:
            lines = [(("nothing is planned", "dim"),)]
        board.put(tuple(lines), is_stale=view.is_stale)


def _row(v: Verdict, device: DeviceView | None, has_change: bool, view: View) -> Row:
    glyph, tone, word = ("×", "failed", "no") if device is not None and device.trouble else _MARKS[v.takes]
    starts = "" if v.expected_start is None else f"≈{figures.clock(v.expected_start, with_seconds=True)}"
    if v.expected_start is not None and v.expected_start <= view.totals.now:
        starts = "now"
    text = "dim" if v.takes is Takes.NO else "text"
    cells: list[Spans] = [
        ((v.device, text),),
        ((f"{glyph} ", tone), (word, tone)),
        ((starts or "unknown", text),),
        ((v.why, text),),
    ]
    if has_change:
        change = v.change.removeprefix("gswarm ")
        key: Spans = (("s ", "key"),) if change.startswith("model serve") else ()
        cells.append((*key, (change, "text")) if change else (("-", "dim"),))
    at = v.expected_start.timestamp() if v.expected_start else 4e12
    return Row(device.id if device is not None else v.device, tuple(cells), values=(v.device, v.takes.value, at, v.why))
