"""A recording's samples as CSV, JSON lines or Parquet, one row a device and moment; NA is an empty cell, or null."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gswarm.profiler.columns import Rows, absent
from gswarm.profiler.metrics import BY_NAME
from gswarm.profiler.recording import Recording
from gswarm.profiler.series import Series
from gswarm.profiler.ticks import SLOTS
from gswarm.v1.profiler_pb2 import MetricColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rows(recording: Recording, form: str) -> Iterator[str]:
    """Lines of text, header first for CSV: a column for each metric that any of the nodes gave at any time.

    By node and time within a slice of time; a device that was not sampled at a moment of its node is NA then.
    """
    metrics = _ordered(recording.metrics)
    if form == "csv":
        yield _line(["time", "node", "device", *metrics])
    for part, known in recording.slices():
        held = {name: known[name] for name in part.columns if name in known}
        for node in dict.fromkeys(part.nodes):
            yield from _csv(part, node, held, metrics) if form == "csv" else _json(part, node, held)


def _ordered(found: Iterable[str]) -> list[str]:
    """Metrics of the table in its order, then what users named."""
    names = set(found)
    return [name for name in BY_NAME if name in names] + sorted(names - BY_NAME.keys())


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _quoted(text: str) -> str:
    return _line([text, ""])[:-2]


def _csv(part: Rows, node: str, held: Mapping[str, MetricColumn], metrics: Sequence[str]) -> Iterator[str]:
    grid = _grid(part, node)
    missing = ["" for _ in range(grid.rows.size)]
    columns = [
        _texts(part.columns[name], held[name], grid.rows, "{:g}".format, "") if name in held else missing
        for name in metrics
    ]
    times = [time for time in grid.times for _ in grid.devices]
    labels = [f"{_quoted(node)},{_quoted(device)}" for device in grid.devices] * len(grid.times)
    for cells in zip(times, labels, *columns, strict=True):
        yield ",".join(cells) + "\n"


def _json(part: Rows, node: str, held: Mapping[str, MetricColumn]) -> Iterator[str]:
    grid = _grid(part, node)
    columns = [
        _texts(part.columns[name], column, grid.rows, json.dumps, "null", f"{json.dumps(name)}: ")
        for name, column in held.items()
    ]
    times = [f'{{"time": "{time}"' for time in grid.times for _ in grid.devices]
    labels = [f'"node": {json.dumps(node)}, "device": {json.dumps(device)}' for device in grid.devices]
    for cells in zip(times, labels * len(grid.times), *columns, strict=True):
        yield ", ".join(cells) + "}\n"


class _Grid(NamedTuple):
    """Moments and devices of a node, and which of a slice's rows each of them is, moment by moment; -1: none."""

    times: list[str]
    devices: list[str]
    rows: NDArray[np.int64]


def _grid(part: Rows, node: str) -> _Grid:
    mine = [index for index, name in enumerate(part.nodes) if name == node]
    inside = [np.arange(part.starts[index], part.starts[index + 1]) for index in mine]
    stamps = np.unique(np.concatenate([part.times_us[rows] for rows in inside]))
    places = np.full((len(stamps), len(mine)), -1, np.int64)
    for place, rows_of in enumerate(inside):
        places[np.searchsorted(stamps, part.times_us[rows_of]), place] = rows_of
    times = [
        datetime.fromtimestamp(stamp / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for stamp in stamps.tolist()
    ]
    return _Grid(times, [part.device_ids[index] for index in mine], places.ravel())


def _texts(
    values: NDArray[Any],
    column: MetricColumn,
    rows: NDArray[np.int64],
    text: Callable[[float], str],
    missing: str,
    before: str = "",
) -> list[str]:
    """Each of these rows of a metric as text. Most values come many times, so each is written once."""
    is_known = ~absent(values)
    if column.scale or SLOTS[column.type][0] == "f32":
        values = values.astype(np.float32)  # as it was measured
    else:
        text = str
    unique, place = np.unique(values[is_known], return_inverse=True)
    places = np.full(len(values) + 1, len(unique))  # the last one stands for no row
    places[:-1][is_known] = place
    words = np.array([*(before + text(value) for value in unique.tolist()), before + missing], object)
    found: list[str] = words[places[rows]].tolist()
    return found


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
