"""One device: gauges with their history, the memory ledger, what runs on it, what is next, what ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.containers import Horizontal
from textual.widget import Widget

from gswarm.cluster.types import Device, DeviceProcess
from gswarm.model.types import Service, ServicePhase
from gswarm.queue.types import Task, TaskPhase
from gswarm.scheduler.lanes import initials

from .. import figures, health
from ..model_state import MEMORY, POWER, TEMPERATURE, UTIL, pick
from ..view import DeviceView, View
from ..widgets.board import Board
from ..widgets.lanes import axis, lane
from ..widgets.ledger import Part, ledger, total_line
from ..widgets.spans import Span, Spans, width
from ..widgets.sparkline import rows as sparkline
from ..widgets.table import Column, Content, Row
from .page import Listing, Page

if TYPE_CHECKING:
    from ..deeds import Deed


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number worth a history."""

    title: str
    metrics: tuple[str, ...]
    unit: str
    scale: float = 1.0


INSIDE, OUTSIDE, FRAME = 8, 28, 2
"""Rows of what runs on it at least, rows of all else on the page, rows of a frame."""
GAUGES = (
    Gauge("util", UTIL, "%"),
    Gauge("tensor", ("tensor_percent", "tensor_active_percent"), "%"),
    Gauge("DRAM bandwidth", ("dram_percent", "dram_active_percent"), "%"),
    Gauge("power", POWER, "W", 0.001),
    Gauge("memory", MEMORY, "GiB", 1 / 2**30),
    Gauge("memory busy", ("memory_util_percent",), "%"),
    Gauge("temperature", TEMPERATURE, "°C"),
)


def chosen(values: Mapping[str, float], reasons: Mapping[str, str]) -> list[Gauge]:
    """Four gauges that have a number, in order of worth; without four, the first without one stay and say why."""
    given = [g for g in GAUGES if pick(values, g.metrics) is not None]
    rest = [g for g in GAUGES if g not in given]
    return sorted((given + rest)[:4], key=GAUGES.index)


def parts_of(
    device: DeviceView,
    services: Sequence[Service],
    sizes: Mapping[str, int],
    hues: Mapping[str, int],
    foreign: int | None = None,
) -> list[Part]:
    """The ledger: our services first, then what else is in use, then what is free; they add up to the total."""
    ours = [s for s in services if s.memory_bytes and s.phase is not ServicePhase.STOPPED]
    parts: list[Part] = []
    for s in ours:
        held = (s.memory_bytes or 0) // max(1, len(s.device_ids))
        weights = min(held, sizes.get(s.model, 0) // max(1, len(s.device_ids)))
        hue = hues.get(s.model, 0)
        if weights and held - weights > 2**28:
            parts.append(Part(s.model, "weights", weights, hue))
            parts.append(Part("KV, rest", s.model, held - weights, hue + 1))
        elif held:
            parts.append(Part(s.model, "weights", held, hue))
    used = device.memory
    known = sum(p.count for p in parts)
    if used is None:
        return parts
    if known > used:  # reports of different moments: the smaller sum is the device's own
        parts = [Part(p.name, p.detail, p.count * used // known if known else 0, p.hue) for p in parts]
        known = sum(p.count for p in parts)
    outside = min(foreign or 0, used - known)
    if outside:
        parts.append(Part("foreign", "processes that are not ours", outside))
    if rest := used - known - outside:
        parts.append(Part("other", "driver and not told apart" if ours or outside else "in use", rest))
    parts.append(Part("free", "", max(0, device.memory_total - used), is_free=True))
    return parts


class DevicePage(Page):
    """A device's page; the subject is its id."""

    domain: ClassVar[str] = "device"
    AUTO_FOCUS = "#ran"
    deed_keys: ClassVar[dict[str, str]] = {"s": "model serve", "P": "profiler start", "T": "profiler topology"}

    def body(self) -> Iterable[Widget]:
        yield Horizontal(*(Board(self.app.paint, "", id=f"gauge-{i}") for i in range(4)), id="gauges")
        yield Board(self.app.paint, "memory ledger", id="ledger")
        yield Horizontal(
            Board(self.app.paint, "on it", id="processes"), Board(self.app.paint, "device", id="health"), id="inside"
        )
        yield Board(self.app.paint, "next in plan", id="next")
        yield Listing(self, "ran here", id="ran")

    def _device(self, view: View) -> DeviceView | None:
        return next((d for d in view.devices if d.id == self.subject), None)

    def crumbs(self, view: View) -> Spans:
        d = self._device(view)
        if d is None:
            return (("‹ Devices ‹ ", "dim"), (self.subject, "key"), ("  is gone", "failed"))
        sim: tuple[Span, ...] = (("  SIM", "changing"),) if d.is_simulated else ()
        device = self.app.snapshot.devices.get(d.id)
        driver = f"  driver {device.driver_version}" if device and device.driver_version else ""
        return (
            (f"‹ Devices ‹ {d.node} ‹ ", "dim"),
            (d.short, "key"),
            (f"   {d.name}", "title"),
            *sim,
            (f"   {d.id[:12]}…{driver}" if len(d.id) > 13 else f"   {d.id}{driver}", "dim"),
        )

    def echo_line(self) -> str:
        device = self.app.snapshot.devices.get(self.subject)
        return f"gswarm device show {device.alias if device else self.subject}"

    def values_for(self, deed: Deed) -> dict[str, Any]:
        device = self.app.snapshot.devices.get(self.subject)
        if device is None:
            return {}
        known = {"device": device.alias, "node": device.node if deed.domain == "profiler" else None}
        given = [(f, name) for f in deed.fields if (name := known.get(f.ref))]
        return {f.name: [name] if f.is_list else name for f, name in given}

    def draw(self, view: View) -> None:
        d = self._device(view)
        if d is None:
            return
        tall = self.size.height >= 34
        self.query_one("#inside").display = tall
        stale = view.is_stale
        self._gauges(d, stale)
        snapshot = self.app.snapshot
        services = [s for s in snapshot.services.values() if d.id in s.device_ids]
        hue_of = {m.name: m.hue for m in view.models if m.hue is not None}
        known = snapshot.samples.get(d.id, {}).get("foreign_memory_bytes")
        foreign = None if known is None else int(known)
        parts = parts_of(d, services, {m.name: m.size for m in view.models}, hue_of, foreign)
        board = self.query_one("#ledger", Board)
        if d.memory is None:
            reason = next((r for m, r in snapshot.reasons.get(d.id, {}).items() if m in MEMORY), "no sample yet")
            board.put((((f"NA: {reason}", "dim"),),), is_stale=stale)
        else:
            board.put(ledger(parts, board.size.width - 2), subtitle=total_line(parts), is_stale=stale)
        device = snapshot.devices.get(d.id)
        running = self._processes(services, hue_of, device.processes if device else ())
        self.query_one("#processes", Board).put(running, is_stale=stale)
        if device is not None:
            told = self._health(d, device)
            self.query_one("#health", Board).put(told, is_stale=stale)
            # A taller terminal shows more of it; the rest of the page keeps what it needs.
            wanted = max(len(told), len(running)) + FRAME
            self.query_one("#inside").styles.height = max(INSIDE, min(wanted, self.size.height - OUTSIDE))
        self._next(d, view)
        self._ran(d, view)

    def _gauges(self, d: DeviceView, stale: bool) -> None:
        snapshot = self.app.snapshot
        values = snapshot.samples.get(d.id, {})
        reasons = snapshot.reasons.get(d.id, {})
        hue = f"hue{d.holds[0] % 8}" if d.holds else "bar"
        for i, gauge in enumerate(chosen(values, reasons)):
            board = self.query_one(f"#gauge-{i}", Board)
            if board.border_title != gauge.title:
                board.border_title = gauge.title
            value = pick(values, gauge.metrics)
            cells = max(4, board.size.width - 2)
            if value is None:
                why = next((reasons[m] for m in gauge.metrics if m in reasons), "not given by this device")
                board.put(((("NA", "strong"),), ((why, "dim"),)), is_stale=stale)
                continue
            series = [v if v is None else v * gauge.scale for v in self.app.history_of(d.id, gauge.metrics)]
            seen = [v for v in series if v is not None]
            value *= gauge.scale
            top = {"%": 100.0, "W": d.cap_w or 0.0, "GiB": d.memory_total / 2**30, "°C": 100.0}[gauge.unit]
            context = f"peak {max(seen, default=value):.0f}"
            if gauge.unit == "W" and d.cap_w:
                heat = f", {d.celsius:.0f} °C" if d.celsius is not None else ""
                context = f"cap {d.cap_w:.0f}{heat}"
            elif gauge.unit == "GiB":
                context = f"of {d.memory_total / 2**30:.0f}"
            number: Spans = ((f"{value:.0f}", "strong"), (f" {gauge.unit}", "dim"))
            room = cells - width(number) - len(context)
            head = (*number, (" " * room + context, "dim")) if room > 0 else number
            graph = sparkline(series, cells, top or max(seen, default=1.0))
            board.put((head, *(((line, hue),) for line in graph)), is_stale=stale)

    def _processes(
        self, services: Sequence[Service], hue_of: Mapping[str, int], processes: Sequence[DeviceProcess]
    ) -> tuple[Spans, ...]:
        out: list[Spans] = [(("PID     WHAT                      GiB  STATE", "dim"),)]
        for s in services:
            held = f"{s.memory_bytes / 2**30:.1f}" if s.memory_bytes else figures.NA
            out.append(
                (
                    (f"{s.pid or figures.NA!s:<7} ", "text"),
                    (f"{s.model[:12]:<13}", f"hue{hue_of.get(s.model, 0) % 8}"),
                    (f"{s.backend:<12}", "dim"),
                    (f"{held:>4}  ", "text"),
                    (s.phase.value, "dim"),
                )
            )
        for p in processes:
            if not p.ours:
                held = f"{p.memory_bytes / 2**30:.1f}" if p.memory_bytes is not None else figures.NA
                share = f"SM {p.sm_percent} %" if p.sm_percent is not None else ""
                out.append(
                    (
                        (f"{p.pid:<7} {(p.command or figures.NA)[:12]:<13}", "text"),
                        (f"{p.user[:11]:<12}", "dim"),
                        (f"{held:>4}  ", "text"),
                        (share, "dim"),
                    )
                )
        if not services:
            out.append((("nothing of ours runs here", "dim"),))
        return tuple(out)

    def _health(self, d: DeviceView, device: Device) -> tuple[Spans, ...]:
        values = self.app.snapshot.samples.get(d.id, {})
        reasons = self.app.snapshot.reasons.get(d.id, {})
        state: Spans = health.line("state", d.trouble or "ready", "failed" if d.trouble else "ready")
        if d.age_s is not None:
            state = (*state, (f"  sampled {figures.span(d.age_s)} ago", "dim"))
        return (state, *health.lines(device, values, reasons, {m for g in GAUGES for m in g.metrics}))

    def _next(self, d: DeviceView, view: View) -> None:
        board = self.query_one("#next", Board)
        cells = board.size.width - 2 - 9
        now = view.totals.now.timestamp()
        short = initials(b.model for x in view.devices for b in x.blocks)
        body = lane(d.blocks, now, cells, 5, short, self.app.paint().form)
        swaps = sum(b.load_s > 0 for b in d.blocks)
        line = f"{_count(len(d.blocks), 'run')}, {_count(swaps, 'load')}" if d.blocks else "nothing planned here"
        if d.trouble:
            body = (("× ", "failed"), (f"{d.trouble}, no plan", "failed"))
        board.put(
            (
                (("         ", "text"), *axis(cells, 5)),
                ((f"{d.short:<9}", "text"), *body),
                ((f"{'':<9}{line}", "dim"),),
            ),
            is_stale=view.is_stale,
        )

    def _ran(self, d: DeviceView, view: View) -> None:
        done = [
            t
            for t in self.app.snapshot.tasks.values()
            if d.id in t.device_ids and t.phase in (TaskPhase.DONE, TaskPhase.FAILED, TaskPhase.CANCELLED)
        ]
        done.sort(key=lambda t: -(t.finished_at.timestamp() if t.finished_at else 0.0))
        columns = (
            Column("TASK", 6, gap=0),
            Column("MODEL", 14),
            Column("WHO", 8),
            Column("RAN", 6, "right"),
            Column("ENDED", 8, gap=2),
            Column("WHAT", max(10, self.size.width - 56), gap=2),
        )
        hue_of = {m.name: m.hue for m in view.models if m.hue is not None}
        rows = tuple(_ran_row(t, hue_of) for t in done[:200])
        note: tuple[Spans, ...] = () if rows else ((("no finished task yet", "dim"),),)
        subtitle = f"last {len(rows)}" if rows else ""
        self.query_one("#ran", Listing).load(
            Content(columns, rows, note=note, is_stale=view.is_stale, title="ran here", subtitle=subtitle)
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ran_row(t: Task, hue_of: Mapping[str, int]) -> Row:
    ran = (t.finished_at - t.started_at).total_seconds() if t.finished_at and t.started_at else None
    tokens = f"{t.tokens_in or 0} → {t.tokens_out} tok" if t.tokens_out is not None else ""
    what = f"{t.action}  {tokens}" if t.phase is TaskPhase.DONE else f"{t.phase.value}: {t.detail}"
    return Row(
        t.id,
        (
            ((t.id, "text"),),
            ((t.model or t.type.value, f"hue{hue_of[t.model] % 8}" if t.model in hue_of else "text"),),
            ((t.actor, "dim"),),
            ((figures.seconds(ran), "text"),),
            ((figures.clock(t.finished_at, with_seconds=True), "dim"),),
            ((what, "dim" if t.phase is TaskPhase.DONE else "failed"),),
        ),
        values=(float(t.id) if t.id.isdigit() else 0.0, t.model, t.actor, ran or 0.0),
    )
