"""A recording as a trace that ui.perfetto.dev opens: counters per device, slices for tasks and loads, marks.

The Trace Event Format of Chrome, JSON object form ("Trace Event Format", docs.google.com/document/d/
1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU), which Perfetto reads (perfetto.dev/docs/getting-started/other-formats).
A process is a node, a thread a row of slices; times are microseconds from the recording's start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gswarm.profiler import charts
from gswarm.profiler.history import History, Span, SpanKind
from gswarm.profiler.series import Series

CLUSTER = 1
"""The process of what belongs to no node: marks."""
Event = dict[str, Any]
"""One trace event, as the format's JSON has it."""


def pieces(series: Sequence[Series], history: History) -> Iterator[str]:
    """The file, in pieces: one event a line."""
    about = {
        "recording": history.name,
        "started_at": datetime.fromtimestamp(history.start_us / 1e6, UTC).isoformat(),
        "damage": "; ".join(history.damage),
    }
    yield f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [\n'
    separator = ""
    for event in events(series, history):
        yield separator + json.dumps(event, ensure_ascii=False, allow_nan=False)
        separator = ",\n"
    yield "\n]}\n"


def events(series: Sequence[Series], history: History) -> Iterator[Event]:
    """Every event: names first, then counters, slices and marks."""
    nodes = dict.fromkeys([*(one.node for one in series), *(span.node for span in history.spans if span.node)])
    processes = {node: CLUSTER + 1 + place for place, node in enumerate(nodes)}
    yield _named("process_name", CLUSTER, 0, history.name)
    for node, pid in processes.items():
        yield _named("process_name", pid, 0, node)
    for one in series:
        yield from _counters(one, history, processes[one.node])
    rows = _Rows()
    for one in series:
        yield from _slices(one, history, processes[one.node], rows)
    yield from _row(CLUSTER, "marks", history.of(SpanKind.MARK), history, rows)
    downloads = history.of(SpanKind.DOWNLOAD)
    for node, pid in processes.items():
        yield from _row(pid, "downloads", [s for s in downloads if s.node == node], history, rows)
    for mark in history.marks:
        if mark.time is not None:
            at = round(mark.time.timestamp() * 1e6) - history.start_us
            yield {"ph": "i", "s": "g", "name": mark.message, "cat": "mark", "ts": at, "pid": CLUSTER, "tid": 0}


def _named(what: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _counters(one: Series, history: History, pid: int) -> Iterator[Event]:
    """A counter track a metric. A value holds until the next event, so that only changes are written."""
    for metric, column in one.columns.items():
        if not column.known.any():
            continue
        name = f"{charts.label(history, one.device)} {metric}"
        times = one.times_us[column.known] - history.start_us
        values = column.values[column.known]
        kept = np.concatenate(([True], values[1:] != values[:-1]))
        kept[-1] = True
        for at, value in zip(times[kept].tolist(), values[kept].tolist(), strict=True):
            number = round(value, 4) if isinstance(value, float) else value
            yield {"ph": "C", "name": name, "ts": at, "pid": pid, "args": {metric: number}}


class _Rows:
    """Numbers of threads, each used for one row."""

    def __init__(self) -> None:
        self._used = 0

    def next(self) -> int:
        self._used += 1
        return self._used


def _slices(one: Series, history: History, pid: int, rows: _Rows) -> Iterator[Event]:
    name = charts.label(history, one.device)
    yield from _row(pid, f"{name} services", history.of(SpanKind.SERVICE, one.device), history, rows)
    yield from _row(pid, f"{name} tasks", history.of(SpanKind.TASK, one.device), history, rows)
    yield from _row(pid, f"{name} NA", list(_unknown(one, history)), history, rows)


def _unknown(one: Series, history: History) -> Iterator[Span]:
    """When a metric that has values has none. A counter cannot say so, it stays at its last value: these are slices."""
    ends = one.times_us + (one.holds_s(history.interval_s, history.slowest_s) * 1e6).astype(np.int64)
    for metric, column in one.columns.items():
        held, times = ends[column.known], one.times_us[column.known]
        if not len(times):
            continue
        until = np.concatenate((times[1:], [max(int(held[-1]), history.end_us)]))
        # A sample that came a little late is no gap.
        for place in np.flatnonzero(until - held > (held - times) / 2 + 1).tolist():
            yield Span(SpanKind.UNKNOWN, f"{metric} NA", "NA", int(held[place]), int(until[place]), (one.device,))


def _row(pid: int, name: str, spans: Sequence[Span], history: History, rows: _Rows) -> Iterator[Event]:
    """Slices of one thread must nest, and what runs at once does not: each span takes the first row that is free."""
    ends: list[int] = []
    threads: list[int] = []
    for span in sorted(spans, key=lambda s: (s.start_us, -s.end_us)):
        place = next((i for i, end in enumerate(ends) if end <= span.start_us), len(ends))
        if place == len(ends):
            ends.append(0)
            threads.append(rows.next())
            yield _named("thread_name", pid, threads[place], name if not place else f"{name} {place + 1}")
        ends[place] = max(span.end_us, span.start_us + 1)
        yield _slice(span, history, pid, threads[place])


def _slice(span: Span, history: History, pid: int, tid: int) -> Event:
    match span.kind:
        case SpanKind.TASK:
            name = f"task {span.name}"
        case SpanKind.SERVICE:
            name = f"{span.name} {span.phase}"
        case _:
            name = span.name
    told = {
        "phase": span.phase,
        "model": span.model,
        "service": span.service,
        "wait_s": span.wait_s,
        "tokens": span.tokens,
        "detail": span.detail,
        "went_on": span.is_open or None,
    }
    return {
        "ph": "X",
        "name": name,
        "cat": span.kind.value,
        "ts": span.start_us - history.start_us,
        "dur": max(1, span.end_us - span.start_us),
        "pid": pid,
        "tid": tid,
        "args": {key: value for key, value in told.items() if value not in (None, "")},
    }
