"""Queue: blocked first, then next to start, running last; what each waits for and when it is expected to start."""

from __future__ import annotations

from functools import partial

from gswarm.queue.types import Plan

from .. import figures
from ..view import TaskView, View
from ..widgets.spans import Spans
from ..widgets.table import Column, Content, Later, Row
from .base import Pane


class QueuePane(Pane):
    """Tasks that are not finished."""

    number = 4
    title = "Queue"
    domain = "queue"
    key_order = "ncHRew+-"
    detail = "queue explain"
    filter_field = "model"
    listing = "queue list"
    kind = "task"
    empty = ("nothing queued", "$ gswarm queue submit flow.yaml", "or press n")

    def draw(self, view: View, width: int, height: int) -> Content:
        has_who = width >= 48
        task = max(5, *(len(t.id) for t in view.tasks)) if view.tasks else 5
        model = 10 if width < 52 else 14 if width < 80 else 20
        rest = width - 1 - task - 1 - model - 1 - 4 - 2 - (7 if has_who else 0)
        columns = [Column("TASK", task, gap=0), Column("MODEL", model), Column("WAIT", 4, "right")]
        columns.append(Column("STARTS", rest, gap=2))
        if has_who:
            columns.append(Column("WHO", 6))
        plan = view.plan
        if plan is None:
            running = sum(t.is_running for t in view.tasks)
            waiting = sum(bool(t.blocked) for t in view.tasks)
            plan = Plan(ready=len(view.tasks) - running - waiting, running=running, waiting=waiting)
        subtitle = " · ".join(plan.counts)
        return Content(
            tuple(columns), tuple(Later(t.id, partial(self._row, t, has_who)) for t in view.tasks), subtitle=subtitle
        )

    def _row(self, t: TaskView, has_who: bool) -> Row:
        starts: Spans
        if t.is_running:
            starts = (("● ", "ready"), (f"runs {t.where}" if t.where else "runs", "text"))
        elif t.blocked:
            tone = "failed" if t.task.phase.value == "ready" else "dim"
            when = f"≈{figures.clock(t.starts)}" if t.starts is not None else ""
            # Where both do not fit, when it starts says more than after whom.
            told = f"{when} {t.blocked}" if when and has_who else when or t.blocked
            starts = (("■ " if tone == "failed" else "◌ ", tone), (told, tone))
        elif t.starts is not None:
            starts = ((f"≈{figures.clock(t.starts)} {t.where}", "text"),)
        else:
            starts = (("◌ ", "dim"), ("not planned yet", "dim"))
        wait = "changing" if t.is_late else "text"
        cells: list[Spans] = [
            ((t.id, "text"),),
            ((t.model, "text" if t.hue is None else f"hue{t.hue % 8}"),),
            ((figures.span(t.wait_s), wait),),
            starts,
        ]
        if has_who:
            cells.append(((t.who, "dim"),))
        number = float(t.id) if t.id.isdigit() else 0.0
        at = t.starts.timestamp() if t.starts else 0.0
        return Row(
            t.id,
            tuple(cells),
            values=(number, t.model, t.wait_s, at, t.who),
            search=f"{t.task.workflow_id} {t.task.action} {t.who} {t.task.phase.value} {t.task.priority.value}",
        )
