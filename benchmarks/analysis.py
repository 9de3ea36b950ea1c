"""What an analysis costs: `profiler analyze` of a recording beside json.load of the same samples, CPU in one process.

The recording is made by hand with random values, the worst case for everything that looks for changes. Prints one JSON
line.

    python benchmarks/analysis.py [--nodes 1] [--devices 8] [--minutes 60] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gswarm import __version__
from gswarm.profiler import analysis, export, history, metrics
from gswarm.profiler.journal import FORMAT, Record, Writer, frame
from gswarm.profiler.recording import Recording
from gswarm.v1 import cluster_pb2, profiler_pb2

START_US = 1_790_000_000_000_000
SLOTS = {profiler_pb2.COLUMN_TYPE_GAUGE_F32: "<f4", profiler_pb2.COLUMN_TYPE_GAUGE_I32: "<i4"}


def write(directory: Path, nodes: int, devices: int, seconds: int) -> None:
    """A recording of a cluster whose every value changes with every tick, once a second."""
    generator = np.random.default_rng(0)
    columns = metrics.columns()
    kinds = [SLOTS.get(column.type, "<u8") for column in columns]
    body = bytearray(frame(Record.LIST, START_US, cluster_pb2.WatchResponse(revision=1, list=True).SerializeToString()))
    for node in range(nodes):
        ids = [f"GPU-{node}-{index}" for index in range(devices)]
        schema = profiler_pb2.MetricSchema(node=f"n{node}", id=1, columns=columns, device_ids=ids)
        body += frame(Record.SCHEMA, START_US, schema.SerializeToString())
    for second in range(seconds):
        now = START_US + second * 1_000_000
        for node in range(nodes):
            packed = {
                slot: (generator.random(devices * kinds.count(dtype)) * 100).astype(dtype).tobytes()
                for slot, dtype in (("f32", "<f4"), ("i32", "<i4"), ("u64", "<u8"))
            }
            tick: Any = profiler_pb2.SampleTick(
                node=f"n{node}", seq=second + 1, time_unix_us=now, schema_id=1, **packed  # type: ignore[arg-type]
            )
            body += frame(Record.TICK, now, tick.SerializeToString())
    (directory / "manifest.json").write_text(json.dumps({"format": FORMAT, "name": "bench", "interval_s": 1.0}))
    writer = Writer(directory / "journal")
    writer.append(bytes(body))
    writer.close()


def analyse(directory: Path) -> int:
    """All that the command does."""
    with Recording.open(directory) as recording:
        found = analysis.analyse(recording.series(), history.read(recording))
    return found.ticks


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    """The median of its CPU seconds."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return statistics.median(took)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, options.nodes, options.devices, options.minutes * 60)
        with Recording.open(directory) as recording:
            lines = directory / "lines.json"
            lines.write_text("".join(export.rows(recording, "json")))

        def load() -> object:
            with lines.open() as file:
                return [json.loads(line) for line in file]

        ours, theirs = cpu_s(lambda: analyse(directory), options.rounds), cpu_s(load, options.rounds)
        told = {
            "benchmark": "analysis",
            "gswarm": __version__,
            "nodes": options.nodes,
            "devices": options.devices,
            "minutes": options.minutes,
            "analyze_cpu_s": round(ours, 3),
            "json_load_cpu_s": round(theirs, 3),
            "analyze_to_json_load": round(ours / theirs, 3),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
