"""A recording's samples as CSV, JSON lines or Parquet, one row a device and moment; NA is an empty cell, or null."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gswarm.profiler.columns import absent
from gswarm.profiler.metrics import BY_NAME
from gswarm.profiler.recording import Recording
from gswarm.profiler.series import Series

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rows(recording: Recording, form: str) -> Iterator[str]:
    """Lines of text, header first for CSV: a column for each metric that any of the nodes gave at any time."""
    header = ["time", "node", "device", *_metrics(recording)]
    if form == "csv":
        yield _line(header)
    for found in recording.slices():
        device = np.repeat(np.arange(len(found.device_ids)), np.diff(found.starts))
        order = np.lexsort((device, found.times_us))
        none = [None] * len(order)
        given = [_told(found.columns[name][order]) if name in found.columns else none for name in header[3:]]
        for row, number in enumerate(device[order].tolist()):
            stamp = datetime.fromtimestamp(int(found.times_us[order[row]]) / 1e6, UTC)
            time = stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            keys = [time, found.nodes[number], found.device_ids[number]]
            if form == "json":
                told = dict(zip(header, [*keys, *(column[row] for column in given)], strict=True))
                yield json.dumps(told) + "\n"
                continue
            cells = ("" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in (c[row] for c in given))
            yield _line([*keys, *cells])


def _metrics(recording: Recording) -> list[str]:
    """Every column of the recording, those of the table in its order, then what users named."""
    found = set(recording.metrics)
    return [name for name in BY_NAME if name in found] + sorted(found - BY_NAME.keys())


def _told(values: NDArray[Any]) -> list[float | int | None]:
    return [None if is_na else value for value, is_na in zip(values.tolist(), absent(values).tolist(), strict=True)]


def _line(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def parquet(series: Sequence[Series], path: Path) -> int:
    """Write a file as a sealed recording's: sorted by device and time, units in the names, null for NA; its rows."""
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
