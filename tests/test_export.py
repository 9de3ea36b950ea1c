"""CSV and JSON exports: what one tick after another, value by value, would give."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from gswarm.profiler.columns import Rows, absent
from gswarm.profiler.export import rows
from gswarm.profiler.metrics import BY_NAME
from gswarm.profiler.recording import Recording
from gswarm.profiler.seal import seal
from gswarm.v1 import profiler_pb2
from tests.support.recordings import COLUMNS, START_US, Journal, a_run, schema, tick

OTHERS = (
    profiler_pb2.MetricColumn(name="their_own", unit="1", type=profiler_pb2.COLUMN_TYPE_GAUGE_F32),
    profiler_pb2.MetricColumn(name="temperature_c", unit="C", type=profiler_pb2.COLUMN_TYPE_GAUGE_I32, scale=1),
    *COLUMNS[1:],
)


def plainly(recording: Recording, form: str) -> Iterator[str]:
    """The same, written value by value so that it is plainly right, and slow."""
    metrics = [name for name in BY_NAME if name in recording.metrics] + sorted(set(recording.metrics) - BY_NAME.keys())

    def line(cells: list[str]) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(cells)
        return out.getvalue()

    if form == "csv":
        yield line(["time", "node", "device", *metrics])
    for part, known in recording.slices():
        row_of: dict[tuple[str, int, str], int] = {}
        for number, (device, node) in enumerate(zip(part.device_ids, part.nodes, strict=True)):
            for row in range(part.starts[number], part.starts[number + 1]):
                row_of[node, int(part.times_us[row]), device] = row
        for node in dict.fromkeys(part.nodes):
            devices = [d for d, n in zip(part.device_ids, part.nodes, strict=True) if n == node]
            for time_us in sorted({at for name, at, _ in row_of if name == node}):
                at = datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds")
                time = at.replace("+00:00", "Z")
                for device in devices:
                    given = {
                        name: told(part, known[name], row_of.get((node, time_us, device))) for name in part.columns
                    }
                    if form == "json":
                        yield json.dumps({"time": time, "node": node, "device": device, **given}) + "\n"
                        continue
                    cells = (given.get(name) for name in metrics)
                    texts = ("" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in cells)
                    yield line([time, node, device, *texts])


def told(part: Rows, column: profiler_pb2.MetricColumn, row: int | None) -> float | int | None:
    """One value of a recording; None is NA."""
    if row is None:
        return None
    values = part.columns[column.name][row : row + 1]
    if absent(values)[0]:
        return None
    is_float = column.scale or column.type == profiler_pb2.COLUMN_TYPE_GAUGE_F32
    return float(np.float32(values[0])) if is_float else int(values[0])


def odd(directory: Path) -> Path:
    """Nodes that give different metrics, names to be quoted, a device that comes later, extreme values, two segments."""
    journal = Journal(directory)
    plain, strange = schema("n1", ["a", 'b,"c"']), schema("n 2", ["d", "e"], OTHERS)
    alone = schema("n 2", ["d"], OTHERS, id=2)
    journal.list()
    for layout in (plain, strange, alone):
        journal.schema(layout)
    numbers: list[float | None] = [0.1, None, 100.0, 1e-9, 12345.678, 3.0, float("inf"), -0.0]
    for number, value in enumerate(numbers * 4):
        journal.now_us = START_US + number * 250_000
        whole = None if value is None else number * 997 % 4
        row: dict[str, float | int | None] = {
            "gpu_util_percent": value,
            "power_mw": whole,
            "energy_mj": 2**64 - 2 - number,
        }
        journal.tick(tick(plain, journal.now_us, [row, {}], number + 1))
        other: dict[str, float | int | None] = {"their_own": value, "temperature_c": 615 + number, "energy_mj": number}
        layout = alone if number % 3 else strange
        every: list[dict[str, float | int | None]] = [other, {"power_mw": -number}]
        made = every[: len(layout.device_ids)]
        journal.tick(tick(layout, journal.now_us + 1000, made, number + 1))
        if number == 16:
            journal.write()
            journal.list()
            for again in (plain, strange, alone):
                journal.schema(again)
    return journal.write(2)


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("make", [odd, lambda path: a_run(path, 130).write()])
def test_it_is_the_same_text(tmp_path: Path, form: str, is_sealed: bool, make: object) -> None:
    directory = make(tmp_path / "run")  # type: ignore[operator]
    if is_sealed:
        seal(directory)
    with Recording.open(directory) as recording:
        expected = list(plainly(recording, form))
        assert list(rows(recording, form)) == expected and len(expected) > 90
