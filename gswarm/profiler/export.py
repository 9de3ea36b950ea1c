"""A recording's samples as CSV, JSON lines or Parquet, one row a device and moment; NA is an empty cell, or null."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gswarm.host.samples import values
from gswarm.profiler.metrics import BY_NAME
from gswarm.profiler.recording import Recording
from gswarm.profiler.series import Series


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


def parquet(series: Sequence[Series], path: Path) -> int:
    """Write a file as a sealed recording's: sorted by device and time, units in the names, null for NA; its rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(series, key=lambda one: (one.device, one.node))
    names = dict.fromkeys(name for one in ordered for name in one.columns)
    counts = [len(one.times_us) for one in ordered]

    def words(values: list[str]) -> Any:
        places = np.repeat(np.arange(len(ordered), dtype=np.int32), counts)
        return pa.DictionaryArray.from_arrays(places, pa.array(values, pa.string())) if ordered else pa.array([])

    def column(name: str) -> Any:
        like = next(one.columns[name] for one in ordered if name in one.columns)
        kind = pa.from_numpy_dtype(like.values.dtype)
        return pa.chunked_array(
            [
                (
                    pa.array(np.ascontiguousarray(found.values), kind, mask=~found.known)
                    if (found := one.columns.get(name)) is not None
                    else pa.nulls(len(one.times_us), kind)
                )
                for one in ordered
            ],
            kind,
        )

    times = np.concatenate([np.zeros(0, np.int64), *(one.times_us for one in ordered)])
    table = pa.table(
        {
            "device_id": words([one.device for one in ordered]),
            "time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "node": words([one.node for one in ordered]),
            **{name: column(name) for name in names},
        }
    )
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)
