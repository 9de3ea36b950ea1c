"""One task: why it waits, against which bound, when it starts and where, device by device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.widget import Widget

from gswarm.queue.types import Task, TaskPhase

from .. import figures
from ..model_state import DeviceView, TaskView, View
from ..widgets.board import Board
from ..widgets.gauge import bar
from ..widgets.lanes import axis, initials, lane
from ..widgets.spans import Span, Spans
from ..widgets.table import Column, Content, Row
from .page import Listing, Page

if TYPE_CHECKING:
    from ..deeds import Deed


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one device takes the task, from what the plan and the devices say."""

    device: DeviceView
    takes: str
    """ "yes", "could" or "no"."""
    starts: float | None
    why: str
    change: str = ""
    """What would change it, shortly; empty when nothing of ours would."""


_ORDER = {"yes": 0, "could": 1, "no": 2}
_MARKS = {"yes": ("●", "ready"), "could": ("◐", "changing"), "no": ("○", "dim")}


def verdicts(task: Task, view: View, needs: int) -> list[Verdict]:
    """Every device's verdict, soonest first; those that say yes, then could, then no."""
    out = [_verdict(task, d, needs) for d in view.devices]
    return sorted(out, key=lambda v: (_ORDER[v.takes], v.starts is None, v.starts or 0.0, v.device.trouble != ""))


def _verdict(task: Task, d: DeviceView, needs: int) -> Verdict:
    if d.trouble:
        return Verdict(d, "no", None, d.trouble)
    mine = next((b for b in d.blocks if task.id in b.task_ids), None)
    if mine is not None:
        return Verdict(d, "yes", mine.start, mine.reason or f"rides with {mine.count - 1} more of {mine.model}")
    ends = max((b.end for b in d.blocks), default=None)
    ahead = sum(b.count for b in d.blocks)
    if d.holds and d.holds[1] == task.model:
        return Verdict(d, "could", ends, f"holds {task.model}, {ahead} tasks in its lane")
    free = None if d.memory is None else d.memory_total - d.memory
    if needs and free is not None and free >= needs:
        return Verdict(
            d, "could", ends, f"free {figures.size(free)}, needs a load of {task.model}", f"serve {task.model} here"
        )
    if d.holds:
        lacks = f", free {figures.size(free)} of {figures.size(needs)} needed" if needs and free is not None else ""
        return Verdict(d, "no", None, f"holds {d.holds[1]}, {ahead} tasks{lacks}")
    if needs and d.memory_total and needs > d.memory_total:
        return Verdict(d, "no", None, f"has {figures.size(d.memory_total)}, {task.model} needs {figures.size(needs)}")
    return Verdict(d, "no", None, f"{task.model} is not served there", f"serve {task.model} here")


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
        shown = next((t for t in view.tasks if t.id == task.id), None)
        model = next((m for m in view.models if m.name == task.model), None)
        needs = model.size if model else 0
        found = verdicts(task, view, needs)
        self._why(task, shown, found, view, needs)
        self._table(found, view)
        self._ride(task, found, view)

    def _why(self, task: Task, shown: TaskView | None, found: list[Verdict], view: View, needs: int) -> None:
        from ..model_state import Tone

        yes = next((v for v in found if v.takes == "yes"), None)
        bound = view.plan.wait_bound_s if view.plan else 0.0
        reason = task.detail or self.app.reason_of(task)
        if task.phase is TaskPhase.RUNNING:
            head: Spans = (("running ", "text"), (f"on {shown.where if shown else task.node}", "strong"))
        elif task.phase in (TaskPhase.DONE, TaskPhase.FAILED, TaskPhase.CANCELLED):
            tone = Tone.FAILED.value if task.phase is TaskPhase.FAILED else "strong"
            head = ((f"{task.phase.value} ", tone), (task.detail, "text"))
        elif task.phase is TaskPhase.WAITING:
            head = (
                ("waiting", "text"),
                (", because ", "dim"),
                (f"it comes after {' '.join(task.depends_on)}", "strong"),
            )
        elif reason:
            head = (("waiting", "text"), (", because ", "dim"), (reason, "strong"))
        elif yes is not None:
            head = (("waiting", "text"), (", because ", "dim"), ("the devices that could take it are busy", "strong"))
        else:
            head = (("waiting", "text"), (", because ", "dim"), (f"no device has {task.model} served", "strong"))
        lines: list[Spans] = [head]
        if shown is not None and not shown.is_running:
            waited = figures.span(shown.wait_s)
            if bound:
                share = bar(shown.wait_s / bound, 30, "changing" if shown.is_late else "bar")
                lines.append((("waits    ", "dim"), *share, (f"  {waited} of at most {bound:.0f} s", "text")))
            else:
                lines.append((("waits    ", "dim"), (waited, "text")))
            if yes is not None and shown.starts is not None:
                seen = next((b.runs_seen for b in yes.device.blocks if task.id in b.task_ids), 0)
                basis = f"{seen} runs seen" if seen else "a guess, no runs seen"
                lines.append(
                    (
                        ("starts   ", "dim"),
                        (f"≈{figures.clock(shown.starts, with_seconds=True)}", "strong"),
                        (f" on {yes.device.alias}   ", "text"),
                        (basis, "dim"),
                    )
                )
            else:
                lines.append((("starts   ", "dim"), ("unknown: not in the plan", "text")))
        if task.model:
            size = f" with {figures.size(needs)} free" if needs else ""
            lines.append((("needs    ", "dim"), (f"{task.model} on 1 device{size}", "text")))
        self.query_one("#why", Board).put(tuple(lines), is_stale=view.is_stale)

    def _table(self, found: list[Verdict], view: View) -> None:
        width = self.size.width
        name = max(10, min(20, max((len(v.device.alias) for v in found), default=0) + 1))
        change = 26 if width >= 100 else 0
        why = width - 4 - name - 10 - 10 - change - 2
        columns = [Column("DEVICE", name, gap=0), Column("TAKES IT", 9, gap=0), Column("STARTS", 9), Column("WHY", why)]
        if change:
            columns.append(Column("WHAT WOULD CHANGE IT", change))
        rows = []
        for v in found:
            glyph, tone = ("×", "failed") if v.device.trouble else _MARKS[v.takes]
            starts = "unknown" if v.starts is None else f"≈{_clock(v.starts)}"
            text = "dim" if v.takes == "no" else "text"
            cells: list[Spans] = [
                ((v.device.alias, text),),
                ((f"{glyph} ", tone), (v.takes, tone)),
                ((starts, text),),
                ((v.why, text),),
            ]
            if change:
                cells.append((("s ", "key"), (v.change, "text")) if v.change else (("-", "dim"),))
            rows.append(Row(v.device.id, tuple(cells), values=(v.device.alias, v.takes, v.starts or 4e12, v.why)))
        counts = {k: sum(v.takes == k for v in found) for k in _ORDER}
        subtitle = " · ".join(f"{n} {k}" for k, n in counts.items() if n)
        self.query_one("#verdicts", Listing).load(
            Content(
                tuple(columns),
                tuple(rows),
                is_stale=view.is_stale,
                title="device by device, soonest first",
                subtitle=subtitle,
            )
        )

    def _ride(self, task: Task, found: list[Verdict], view: View) -> None:
        board = self.query_one("#ride", Board)
        now = view.totals.now.timestamp()
        nearest = [v for v in found if v.device.blocks][:4]
        short = initials(b.model for d in view.devices for b in d.blocks)
        name = max((len(v.device.alias) for v in nearest), default=8) + 2
        cells = board.size.width - 2 - name
        yes = next((v for v in found if v.takes == "yes"), None)
        cell_s = 5
        if yes is not None and yes.starts is not None:
            cell_s = next((z for z in (1, 2, 5, 10, 15, 30) if (yes.starts - now) / z < cells * 0.6), 30)
        form = self.app.paint().form
        lines: list[Spans] = [((" " * name, "text"), *axis(cells, cell_s))]
        for v in nearest:
            lines.append(
                ((f"{v.device.alias:<{name}}", "text"), *lane(v.device.blocks, now, cells, cell_s, short, form))
            )
        if yes is not None and yes.starts is not None:
            at = max(0, int(yes.starts // cell_s) - int(now // cell_s))
            with_ids = next((b.task_ids for b in yes.device.blocks if task.id in b.task_ids), ())
            others = " ".join(i for i in with_ids if i != task.id)
            text = "▲ starts here" + (f", in batch with {others}" if others else "")
            lines.append(
                ((f"{task.id:<{name}}", "key"), (" " * min(at, max(0, cells - len(text))), "text"), (text, "key"))
            )
        elif not nearest:
            lines = [(("nothing is planned", "dim"),)]
        board.put(tuple(lines), is_stale=view.is_stale)


def _clock(unix: float) -> str:
    from datetime import UTC, datetime

    return figures.clock(datetime.fromtimestamp(unix, UTC), with_seconds=True)
