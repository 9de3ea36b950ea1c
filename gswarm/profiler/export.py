"""A recording's samples as CSV or JSON lines, one row a device and moment; NA is an empty cell, or null."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime

from gswarm.host.samples import values
from gswarm.profiler.recording import Recording


def rows(recording: Recording, form: str) -> Iterator[str]:
    """Lines of text, header first for CSV."""
    header: list[str] | None = None
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
            if header is None:
                header = ["time", "node", "device", *found]
                yield _line(header)
            yield _line(
                [
                    time,
                    tick.node,
                    device,
                    *("" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in found.values()),
                ]
            )


def _line(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
