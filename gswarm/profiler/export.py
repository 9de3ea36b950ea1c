"""A recording's samples as CSV or JSON lines, one row a device and moment; NA is an empty cell, or null."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime

from gswarm.host.samples import values
from gswarm.profiler.metrics import BY_NAME
from gswarm.profiler.recording import Recording


def rows(recording: Recording, form: str) -> Iterator[str]:
    """Lines of text, header first for CSV: a column for each metric that any of the nodes gave at any time."""
    header = ["time", "node", "device", *_metrics(recording)]
    if form == "csv":
        yield _line(header)
    for schema, tick in recording.ticks():
        time = (
            datetime.fromtimestamp(tick.time_unix_us / 1e6, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )
        for index, device in enumerate(schema.device_ids):
            found = dict(values(schema, tick, index))
            if form == "json":
                yield json.dumps({"time": time, "node": tick.node, "device": device, **found}) + "\n"
                continue
            given = (found.get(name) for name in header[3:])
            cells = ("" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in given)
            yield _line([time, tick.node, device, *cells])


def _metrics(recording: Recording) -> list[str]:
    """Every column of the recording, those of the table in its order, then what users named."""
    found = {column.name for schema, _ in recording.ticks() for column in schema.columns}
    return [name for name in BY_NAME if name in found] + sorted(found - BY_NAME.keys())


def _line(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
