"""Columns and detail of each resource, written once, for CLI tables and console panes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from gswarm import units


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, how to read a cell from a row as of a moment (ages count to it), and whether it is a number.

    `field` is the row's field that is shown, by which a list can then be filtered and sorted; empty: it is made of more.
    """

    heading: str
    read: Callable[[Any, datetime], str]
    is_number: bool = False
    field: str = ""


def _word(heading: str, name: str, is_number: bool = False) -> Column:
    def read(row: Any, _: datetime) -> str:
        value = getattr(row, name)
        return str(value.value if isinstance(value, Enum) else value)

    return Column(heading, read, is_number, name)


def _size(heading: str, name: str) -> Column:
    return Column(heading, lambda row, _: units.size(getattr(row, name)), True, name)


def _known_size(heading: str, name: str) -> Column:
    """A size whose 0 means that it is not known yet."""
    return Column(heading, lambda row, _: units.size(getattr(row, name) or None), True, name)


def _since(name: str) -> Callable[[Any, datetime], str]:
    return lambda row, now: units.since(getattr(row, name), now)


def _seconds(name: str) -> Callable[[Any, datetime], str]:
    """Seconds to be compared: figures, not words."""
    return lambda row, _: f"{getattr(row, name):.1f}"


def _of(read: Callable[[Any], str]) -> Callable[[Any, datetime], str]:
    """A cell that time does not change."""
    return lambda row, _: read(row)


def _names(values: Sequence[str]) -> str:
    return ", ".join(values) or "-"


SHORT: Mapping[str, str] = {"simulated": "SIM"}
"""Words of enums that a column shows as another one, by which a list is filtered too."""


def _default_version(model: Any) -> Any:
    return next((v for v in model.versions if v.version == model.default_version), None)


def _dtype(chunk: Any) -> str:
    if not chunk.dtype:
        return str(chunk.type.value)
    kind = {"f": "f", "i": "i", "u": "u", "b": "bool", "c": "c"}.get(chunk.dtype[1:2], chunk.dtype[1:2])
    bits = "" if kind == "bool" else str(int(chunk.dtype[2:]) * 8) if chunk.dtype[2:].isdigit() else chunk.dtype[2:]
    return f"{kind}{bits}[{','.join(map(str, chunk.shape))}]"


def _wait(task: Any, now: datetime) -> str:
    if task.ready_at is None:
        return "-"
    end = task.started_at or task.finished_at or now
    return units.age((end - task.ready_at).total_seconds())


def _run(task: Any, now: datetime) -> str:
    if task.started_at is None:
        return "-"
    return units.duration(max(0.0, ((task.finished_at or now) - task.started_at).total_seconds()))


def _interval(session: Any) -> str:
    fastest = units.duration(session.interval_s)
    return f"{fastest}-{units.duration(session.slowest_s)}" if session.slowest_s else fastest


def _place(task: Any) -> str:
    return task.service or task.node or "-"


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "Node": (
        _word("NAME", "name"),
        _word("STATE", "phase"),
        _word("VERSION", "version"),
        Column("CPUS", _of(lambda n: units.count(n.cpu_count or None)), True, "cpu_count"),
        _known_size("MEMORY", "memory_bytes"),
        Column("BACKENDS", _of(lambda n: _names(n.backends))),
        _word("DETAIL", "detail"),
    ),
    "Device": (
        _word("DEVICE", "alias"),
        Column("KIND", _of(lambda d: SHORT.get(d.kind.value, d.kind.value)), False, "kind"),
        _word("NAME", "name"),
        _known_size("MEMORY", "memory_bytes"),
        _word("STATE", "phase"),
        _word("ID", "id"),
        _word("DETAIL", "detail"),
    ),
    "Event": (
        Column("TIME", _of(lambda e: units.clock(e.time))),
        _word("SEVERITY", "severity"),
        _word("TYPE", "type"),
        _word("ACTOR", "actor"),
        _word("MESSAGE", "message"),
    ),
    "Alert": (
        Column("SINCE", _of(lambda a: units.clock(a.since))),
        _word("SEVERITY", "severity"),
        _word("RULE", "rule"),
        _word("WHERE", "name"),
        Column("FOR", _since("since"), True),
        _word("MESSAGE", "message"),
    ),
    "TokenInfo": (
        _word("NAME", "name"),
        _word("ROLE", "role"),
        _word("NODE", "node"),
        Column("MADE", _since("created_at")),
    ),
    "Model": (
        _word("MODEL", "name"),
        _known_size("SIZE", "size_bytes"),
        _word("VERSION", "default_version"),
        Column("KIND", _of(lambda m: "SIM" if m.simulated else m.metadata.get("architecture", "-"))),
        Column("DIGEST", _of(lambda m: (v.digest[:12] if (v := _default_version(m)) and v.digest else "-"))),
        Column("SOURCE", _of(lambda m: v.source if (v := _default_version(m)) else "-")),
    ),
    "Placement": (
        Column("MODEL", _of(lambda p: f"{p.model}@{p.version}")),
        _word("NODE", "node"),
        _word("STATE", "phase"),
        _size("DONE", "bytes_done"),
        _known_size("OF", "bytes_total"),
        _size("SHARED", "bytes_shared"),
        _word("DETAIL", "detail"),
    ),
    "Service": (
        _word("SERVICE", "name"),
        Column("MODEL", _of(lambda s: f"{s.model}@{s.version}")),
        _word("STATE", "phase"),
        _word("NODE", "node"),
        Column("BACKEND", _of(lambda s: f"{s.backend}{' SIM' if s.simulated else ''}")),
        Column("PORT", _of(lambda s: str(s.bound_port or s.port or "-")), True),
        Column("TOK/S", _of(lambda s: units.count(s.tokens_per_s)), True, "tokens_per_s"),
        _word("OWNER", "owner"),
        _word("DETAIL", "detail"),
    ),
    "Chunk": (
        _word("ID", "id"),
        Column("TYPE", _of(_dtype)),
        _size("SIZE", "size_bytes"),
        Column("REFS", _of(lambda c: str(len(c.holders))), True),
        Column("AGE", _since("created_at"), True),
        _word("NAME", "name"),
        Column("WHERE", _of(lambda c: _names([p.node for p in c.locations if p.phase.value == "present"]))),
    ),
    "Workflow": (
        _word("ID", "id"),
        _word("NAME", "name"),
        _word("STATE", "phase"),
        Column("DONE", _of(lambda w: f"{w.done}/{w.tasks}"), True),
        _word("FAILED", "failed", True),
        Column("AGE", _since("created_at"), True),
        _word("BY", "actor"),
    ),
    "Task": (
        _word("TASK", "id"),
        _word("ACTION", "action"),
        _word("TYPE", "type"),
        Column("MODEL", _of(lambda t: t.model or "-"), False, "model"),
        _word("PRIORITY", "priority"),
        _word("STATE", "phase"),
        Column("WAIT", _wait, True),
        Column("RAN", _run, True),
        Column("WHERE", _of(_place)),
        _word("DETAIL", "detail"),
    ),
    "Block": (
        _word("MODEL", "model"),
        _word("TASKS", "count", True),
        Column("START", _of(lambda b: units.clock(b.start))),
        Column("END", _of(lambda b: units.clock(b.end))),
        Column("LOAD", _of(lambda b: units.duration(b.load_s) if b.load_s else "-"), True),
        Column("RUNNING", _of(lambda b: "yes" if b.running else "no")),
        _word("WHY", "reason"),
    ),
    "Session": (
        _word("SESSION", "name"),
        _word("STATE", "phase"),
        Column("INTERVAL", _of(_interval), True),
        _word("TICKS", "ticks", True),
        _word("EVENTS", "events", True),
        _size("SIZE", "size_bytes"),
        Column("STARTED", _since("started_at"), True),
        Column("NODES", _of(lambda s: _names(s.nodes) if s.nodes else "all")),
        Column("TAGS", _of(lambda s: _names([f"{key}={value}" for key, value in sorted(s.tags.items())]))),
        _word("DETAIL", "detail"),
    ),
    "MetricInfo": (
        _word("METRIC", "name"),
        Column("UNIT", _of(lambda m: m.unit or "-")),
        _word("TYPE", "type"),
        _word("READ", "read"),
        Column("SWITCH", _of(lambda m: m.switch or "-")),
        _word("SOURCE", "source"),
    ),
    "Outcome": (
        _word("STRATEGY", "strategy"),
        Column("MAKESPAN", _seconds("makespan_s"), True),
        Column("/BOUND", _of(lambda o: f"{o.ratio:.3f}"), True),
        _word("LOADS", "switches", True),
        Column("LOADING", _seconds("switch_s"), True),
        Column("UTIL", _of(lambda o: f"{o.utilisation:.0%}"), True),
        Column("WAIT P99", _seconds("wait_p99_s"), True),
        Column("RESP P99", _seconds("response_p99_s"), True),
        Column("LATE", _of(lambda o: "" if o.late is None else str(o.late)), True),
        Column("US/TASK", _of(lambda o: f"{o.planning_us_per_task:.1f}"), True),
        Column("WAIT P50", _seconds("wait_p50_s"), True),
        Column("RESP P50", _seconds("response_p50_s"), True),
        Column("WAIT MEAN", _seconds("wait_mean_s"), True),
        Column("RESP MEAN", _seconds("response_mean_s"), True),
    ),
}


# Sizes and counts that are 0 on the wire until someone has told them.
_UNKNOWN_AT_0 = frozenset(
    {
        ("Model", "size_bytes"),
        ("Placement", "bytes_total"),
        ("Node", "cpu_count"),
        ("Node", "memory_bytes"),
        ("Device", "memory_bytes"),
    }
)


def columns(cls: type) -> tuple[Column, ...]:
    """The columns of a type; those not in the table show their plain fields."""
    if cls.__name__ in COLUMNS:
        return COLUMNS[cls.__name__]
    return tuple(Column(f.name.upper().replace("_", " "), _of(_plain_field(f.name))) for f in dataclasses.fields(cls))


def fields(name: str) -> dict[str, str]:
    """Heading, in small letters, to the field that is shown under it, of a type's columns that show one field each."""
    return {c.heading.lower(): c.field for c in COLUMNS.get(name, ()) if c.field}


def _plain_field(name: str) -> Callable[[Any], str]:
    return lambda row: plain(getattr(row, name))


def printable(text: str) -> str:
    """Text in one line without control characters: what a backend or a peer wrote must not steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def plain(value: object) -> str:
    """A value in one line for a detail view."""
    if value is None:
        return units.NA
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "-"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return " ".join(
            plain(getattr(value, f.name)) for f in dataclasses.fields(value) if getattr(value, f.name) not in ("", None)
        )
    return str(value) if value != "" else "-"


def detail(row: Any) -> list[tuple[str, str]]:
    """(label, value) pairs of one object, every field, sizes and times readable; parts of it indented below."""
    pairs: list[tuple[str, str]] = []
    for item in dataclasses.fields(row):
        value = getattr(row, item.name)
        if value == 0 and (type(row).__name__, item.name) in _UNKNOWN_AT_0:
            value = None
        if value == () and type(row).__name__ == "Session" and item.name in ("nodes", "metrics"):
            value = "all"
        if value == 0 and type(row).__name__ == "Session" and item.name == "slowest_s":
            pairs.append(("slowest", "-"))  # a regular session
            continue
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            pairs += _parts(item.name.replace("_", " "), value)
        else:
            pairs.append(_pair(item.name, value))
    return pairs


def _pair(label: str, value: object) -> tuple[str, str]:
    """A field's label without its unit, and its value with it."""
    import json

    number = value is None or isinstance(value, int | float)
    if label.endswith("_bytes") and number:
        told = units.NA if value is None else f"{units.size(value)} ({value} bytes)"  # type: ignore[arg-type]
        return label.removesuffix("_bytes").replace("_", " "), told
    if label.endswith("_json") and isinstance(value, str) and value:
        return label.removesuffix("_json"), json.dumps(json.loads(value), ensure_ascii=False)
    if label.endswith("_per_s") and number:
        return label.replace("_per_s", "/s").replace("_", " "), units.count(value)  # type: ignore[arg-type]
    if label.endswith("_s") and number:
        return label.removesuffix("_s").replace("_", " "), units.duration(value)  # type: ignore[arg-type]
    return label.replace("_", " "), plain(value)


def _parts(label: str, members: Sequence[Any]) -> list[tuple[str, str]]:
    """Members that have parts of their own as blocks, others a line each."""
    pairs = []
    for number, member in enumerate(members):
        below = detail(member)
        if any(name.startswith("  ") for name, _ in below):
            pairs += [(label, ""), *((f"  {name}", told) for name, told in below)]
        else:
            told = "  ".join(told.partition(" (")[0] for _, told in below if told not in ("-", units.NA))
            pairs.append(
                (f"  {label.removesuffix('es' if label.endswith('sses') else 's')}" if number == 0 else "", told)
            )
    return pairs


def table(rows: Sequence[Any], cls: type, width: int | None = None, *, now: datetime | None = None) -> list[str]:
    """Lines of a plain table as of `now`: a recording's moment, else the present.

    When `width` is given, what does not fit is cut at the right, so that no line wraps.
    """
    shown, moment = columns(cls), now or datetime.now(UTC)
    cells = [[printable(c.read(row, moment)) for c in shown] for row in rows]
    keep = [i for i, c in enumerate(shown) if c.heading not in ("DETAIL", "LATE") or any(line[i] for line in cells)]
    widths = {i: max([len(shown[i].heading), *(len(line[i]) for line in cells)]) for i in keep}

    def render(line: Sequence[str]) -> str:
        parts = [line[i].rjust(widths[i]) if shown[i].is_number else line[i].ljust(widths[i]) for i in keep]
        text = "  ".join(parts).rstrip()
        return text if width is None or len(text) <= width else text[: max(1, width - 1)] + "…"

    return [render([c.heading for c in shown]), *(render(line) for line in cells)]
