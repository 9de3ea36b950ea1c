"""CSV and JSON exports: what one tick after another, value by value, would give."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gswarm.host.samples import values
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
    """The same, written so that it is plainly right, and slow."""
    found = {column.name for layout, _ in recording.ticks() for column in layout.columns}
    metrics = [name for name in BY_NAME if name in found] + sorted(found - BY_NAME.keys())

    def line(cells: list[str]) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(cells)
        return out.getvalue()

    if form == "csv":
        yield line(["time", "node", "device", *metrics])
    for layout, made in recording.ticks():
        at = datetime.fromtimestamp(made.time_unix_us / 1e6, UTC).isoformat(timespec="milliseconds")
        time = at.replace("+00:00", "Z")
        for index, device in enumerate(layout.device_ids):
            given = dict(values(layout, made, index))
            if form == "json":
                yield json.dumps({"time": time, "node": made.node, "device": device, **given}) + "\n"
                continue
            cells = (given.get(name) for name in metrics)
            texts = ("" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in cells)
            yield line([time, made.node, device, *texts])


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
