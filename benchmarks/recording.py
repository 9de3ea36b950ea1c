"""What recordings cost beside a file of JSON lines: room, CPU per tick, opening, and seeking beside a scan.

An hour of eight nodes with eight GPUs each, at 1 Hz, with noise on what is measured: utilisation, power, clocks and
temperatures wander, energy adds up, memory steps with jobs that come and go and are told as events and task changes. The
journal is framed as the recorder frames it; sealing, opening and seeking are the real code. Prints one JSON line; every
ratio is measured in this one run, CPU time of this process.

    python benchmarks/recording.py [--nodes 8] [--devices 8] [--seconds 3600] [--seeks 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from gswarm.cluster.types import Node
from gswarm.host.samples import SampleHub
from gswarm.host.state import Batch, State
from gswarm.kinds import wire_of
from gswarm.profiler.journal import FORMAT, Record, Writer, frame, scan
from gswarm.profiler.manifest import Manifest, files
from gswarm.profiler.recorder import Recorder
from gswarm.profiler.recording import Recording
from gswarm.profiler.ticks import table
from gswarm.v1 import cluster_pb2, common_pb2, profiler_pb2, queue_pb2
from gswarm.wire import length_prefixed

T = TypeVar("T")
Layouts = dict[str, profiler_pb2.MetricSchema]
START_US = 1_764_000_000_000_000
LIST_EVERY = 60
GIB = 1 << 30


F32, I32 = profiler_pb2.COLUMN_TYPE_GAUGE_F32, profiler_pb2.COLUMN_TYPE_GAUGE_I32
U64, MASK = profiler_pb2.COLUMN_TYPE_COUNTER_U64, profiler_pb2.COLUMN_TYPE_MASK_U64
COLUMNS = tuple(
    profiler_pb2.MetricColumn(name=name, unit=unit, type=kind)
    for name, unit, kind in (
        ("gpu_util_percent", "%", F32),
        ("memory_util_percent", "%", F32),
        ("sm_active_percent", "%", F32),
        ("sm_occupancy_percent", "%", F32),
        ("tensor_active_percent", "%", F32),
        ("dram_active_percent", "%", F32),
        ("pcie_rx_kib_per_s", "KiB/s", F32),
        ("pcie_tx_kib_per_s", "KiB/s", F32),
        ("temperature_c", "°C", F32),
        ("memory_temperature_c", "°C", F32),
        ("fan_percent", "%", F32),
        ("sm_clock_mhz", "MHz", I32),
        ("memory_clock_mhz", "MHz", I32),
        ("performance_state", "", I32),
        ("power_mw", "mW", I32),
        ("process_count", "", I32),
        ("memory_used_bytes", "B", U64),
        ("memory_total_bytes", "B", U64),
        ("energy_mj", "mJ", U64),
        ("clock_event_reasons", "", MASK),
    )
)
FAN = 10
REMIND_S = 30


class Gpu:
    """A GPU whose load comes and goes with jobs; the fan is NA, as it is on servers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._load, self._left, self._energy = 0.0, 0, seed * 10**9
        self._temperature, self._used = 35.0, 2 * GIB

    def read(self) -> tuple[list[float], list[int], list[int]]:
        """A second later: values of each type, in the order of the columns."""
        r = self._random
        if self._left == 0:
            self._left = r.randint(20, 300)
            self._load = r.choice((0.0, 0.0, 0.4, 0.85, 0.97))
            self._used = int((2 + self._load * 70) * GIB) + r.randrange(0, 256) * (2 << 20)
        self._left -= 1
        busy = min(1.0, max(0.0, self._load + r.gauss(0, 0.03) * bool(self._load)))
        power = 70 + 600 * busy + r.gauss(0, 4)
        self._energy += int(power * 1000)
        self._temperature += (33 + 42 * busy - self._temperature) / 30
        # What NVML gives in whole percent and degrees, and what its GPM gives as measured.
        active = [max(0.0, 100 * busy * share + r.gauss(0, 1.5)) if busy else 0.0 for share in (0.9, 0.5, 0.6, 0.4)]
        pcie = [max(0.0, 2e6 * busy + r.gauss(0, 2e4)) if busy else 0.0 for _ in "rt"]
        gauges = [
            round(100 * busy),
            round(55 * busy),
            *active,
            *pcie,
            round(self._temperature),
            round(self._temperature + 7),
        ]
        clock = 1980 - 15 * r.randrange(0, 6) if busy else 345
        capped = 4 if power > 660 else 0 if busy else 1
        return (
            [*gauges, float("nan")],
            [clock, 2619, 0 if busy else 8, int(power * 1000), int(self._load > 0)],
            [self._used, 80 * GIB, self._energy, capped],
        )


def wire_ticks(nodes: int, devices: int, seconds: int) -> Iterator[tuple[int, bytes, profiler_pb2.SampleTick]]:
    """(second, serialised tick, tick) of every node, in order of arrival."""
    gpus = [[Gpu(node * devices + d) for d in range(devices)] for node in range(nodes)]
    jitter = random.Random(1)
    for second in range(seconds):
        for node in range(nodes):
            at = START_US + second * 1_000_000 + node * 800_000 // nodes + jitter.randrange(0, 3000)
            tick = profiler_pb2.SampleTick(node=f"n{node}", seq=second + 1, time_unix_us=at, schema_id=1)
            if second % REMIND_S == 0:
                for device in range(devices):
                    tick.absent.add(device=device, column=FAN, reason="not supported")
            rows = [gpu.read() for gpu in gpus[node]]
            for slot, code in (("f32", "f"), ("i32", "i"), ("u64", "Q")):
                flat = [value for row in rows for value in row[("f32", "i32", "u64").index(slot)]]
                setattr(tick, slot, struct.pack(f"<{len(flat)}{code}", *flat))
            yield second, tick.SerializeToString(), tick


def schemas(nodes: int, devices: int) -> Layouts:
    """The column layout of each node."""
    return {
        f"n{node}": profiler_pb2.MetricSchema(
            node=f"n{node}", id=1, columns=COLUMNS, device_ids=[f"GPU-{node}-{d}" for d in range(devices)]
        )
        for node in range(nodes)
    }


def rows(schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick) -> list[dict[str, float | int | None]]:
    """What a line of JSON holds of each device: every column in its order, None where it is NA."""
    columns: dict[str, float | int | None] = dict.fromkeys(column.name for column in schema.columns)
    return [{**columns, **given} for given in table(schema, tick)]


def watch(objects: dict[tuple[int, str], bytes], revision: int, time_us: int, *, whole: bool) -> bytes:
    """A WatchResponse as recorders write it."""
    mark = cluster_pb2.WatchResponse(revision=revision, list=whole)
    mark.time.FromMicroseconds(time_us)
    return b"".join(length_prefixed(1, wire) for wire in objects.values()) + mark.SerializeToString()


def changes(second: int, revision: int, rng: random.Random) -> dict[tuple[int, str], bytes]:
    """A task that started or ended, and the event that tells it."""
    task = queue_pb2.Task(id=str(rng.randrange(1, 400)), model="smollm2", action="answer", attempt=1)
    task.phase = rng.choice((queue_pb2.TASK_PHASE_RUNNING, queue_pb2.TASK_PHASE_DONE, queue_pb2.TASK_PHASE_READY))
    event = common_pb2.Event(id=str(revision), type="task.changed", message=f"task {task.id} changed", actor="host")
    event.time.FromMicroseconds(START_US + second * 1_000_000)
    return {
        (common_pb2.KIND_TASK, task.id): wire_of(common_pb2.KIND_TASK, task.id, revision, task.SerializeToString()),
        (common_pb2.KIND_EVENT, event.id): wire_of(
            common_pb2.KIND_EVENT, event.id, revision, event.SerializeToString()
        ),
    }


def write(directory: Path, options: argparse.Namespace) -> list[str]:
    """A journal of an hour, and the same frames as JSON lines."""
    directory.mkdir()
    Manifest("bench", 1.0, format=FORMAT).write(directory)
    layouts = schemas(options.nodes, options.devices)
    state: dict[tuple[int, str], bytes] = {
        (common_pb2.KIND_NODE, name): wire_of(
            common_pb2.KIND_NODE, name, 1, cluster_pb2.Node(name=name, cpu_count=64).SerializeToString()
        )
        for name in layouts
    }
    rng, revision, lines, out = random.Random(2), 1, [], bytearray()
    writer, last = Writer(files(directory, 1).journal), -1
    for second, wire, tick in wire_ticks(options.nodes, options.devices, options.seconds):
        now = tick.time_unix_us + 900
        if second != last:
            last = second
            if second % LIST_EVERY == 0:
                recent = dict(list(state.items())[-1400:])  # a host keeps the last thousand events
                out += frame(Record.LIST, now, watch(recent, revision, now, whole=True))
                for schema in layouts.values():
                    out += frame(Record.SCHEMA, now, schema.SerializeToString())
            revision += 1
            changed = changes(second, revision, rng)
            state.update(changed)
            out += frame(Record.BATCH, now, watch(changed, revision, now, whole=False))
            lines.append(json.dumps({"time_us": now, "revision": revision, "objects": [repr(k) for k in changed]}))
        out += frame(Record.TICK, now, wire)
        schema = layouts[tick.node]
        for device, given in zip(schema.device_ids, rows(schema, tick), strict=True):
            body = {"time_us": tick.time_unix_us, "node": tick.node, "device": device}
            lines.append(json.dumps(body | given, separators=(",", ":")))
    writer.append(bytes(out))
    writer.close()
    return lines


def took(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process, all its threads, and the result."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


class _Nothing:
    """Stands where a recorder has the host's parts that this benchmark does not measure."""

    state = State()

    def subscribe(self, _: Callable[[Batch], None]) -> Callable[[], None]:
        return lambda: None

    def ack_ticks(self, node: str, seq: int) -> None:
        return None


Ticks = list[list[tuple[bytes, profiler_pb2.SampleTick]]]
"""Second by second, of every node."""


async def record(directory: Path, ticks: Ticks, layouts: Layouts) -> float:
    """CPU seconds a tick of the real recorder, which writes once a second at 1 Hz: a thread, a write and an fdatasync."""
    nothing, hub = _Nothing(), SampleHub()
    for schema in layouts.values():
        hub.add_schema(schema)
    session = profiler_pb2.Session(name="cpu", interval_s=1.0)
    recorder = Recorder(directory, session, nothing, hub, nothing, lambda told: None)  # type: ignore[arg-type]
    recorder._open()
    begin = time.process_time()
    for second in ticks:
        for wire, tick in second:
            recorder._on_tick(tick.node, wire, None)
        await recorder._flush()
    spent = time.process_time() - begin
    await recorder._close()
    return spent / sum(map(len, ticks))


def append_json(directory: Path, ticks: Ticks, layouts: Layouts) -> tuple[float, float]:
    """CPU seconds a tick of opening a node's file, appending a line of JSON and closing it.

    First from the tick as it arrives, then only the writing of what has been taken apart before.
    """
    directory.mkdir()
    taking = writing = 0.0
    for second in ticks:
        for _, tick in second:
            begin = time.process_time()
            schema = layouts[tick.node]
            gpus = dict(zip(schema.device_ids, rows(schema, tick), strict=True))
            line = {"time_us": tick.time_unix_us, "node": tick.node, "gpus": gpus}
            middle = time.process_time()
            with (directory / f"{tick.node}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            writing += time.process_time() - middle
            taking += middle - begin
    count = sum(map(len, ticks))
    return (taking + writing) / count, writing / count


def cpu_ratios(root: Path, nodes: int, devices: int, seconds: int) -> tuple[float, float, float]:
    """Our CPU a tick beside JSON's, beside JSON's writing alone, and in microseconds; medians of three turns."""
    ticks: Ticks = [[] for _ in range(seconds)]
    for second, wire, tick in wire_ticks(nodes, devices, seconds):
        ticks[second].append((wire, tick))
    layouts = schemas(nodes, devices)
    found = []
    for turn in range(3):
        ours = asyncio.run(record(root / f"cpu-{nodes}-{turn}", ticks, layouts))
        whole, writing = append_json(root / f"json-{nodes}-{turn}", ticks, layouts)
        found.append((ours / whole, ours / writing, 1e6 * ours))
    return tuple(statistics.median(column) for column in zip(*found, strict=True))


def scan_to(data: bytes, until_us: int) -> int:
    """Read a journal from its start up to a moment, the way that needs no index: state and samples."""
    from gswarm.mirror import Samples, Tables

    tables, samples = Tables(), Samples()
    for found in scan(data)[0]:
        if found.time_us > until_us:
            break
        payload = data[found.offset : found.offset + found.size]
        if found.kind in (Record.LIST, Record.BATCH):
            tables.feed(cluster_pb2.WatchResponse.FromString(payload))
        elif found.kind is Record.SCHEMA:
            samples.feed(cluster_pb2.WatchResponse(schemas=[profiler_pb2.MetricSchema.FromString(payload)]))
        else:
            samples.feed(cluster_pb2.WatchResponse(ticks=[profiler_pb2.SampleTick.FromString(payload)]))
    tables.rows(Node)
    return len(samples.values)


def show(recording: Recording, moment_us: int) -> float:
    """Seconds from asking for a moment to its whole frame: rows of every kind, all samples."""
    begin = time.perf_counter()
    recording.seek_us(moment_us)
    from gswarm.codec import dataclass_of
    from gswarm.kinds import BY_SLOT

    for slot in BY_SLOT:
        recording.rows(dataclass_of(slot))
    samples = recording._samples()
    assert samples.values and samples.at and samples.reasons is not None
    return time.perf_counter() - begin


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Everything, in one directory."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        directory, plain = root / "bench", root / "frames.jsonl"
        lines = write(directory, options)
        plain.write_text("\n".join(lines) + "\n")
        whole = root / "frames.json"
        whole.write_text("[" + ",\n".join(lines) + "]")
        journal = files(directory, 1).journal.read_bytes()
        # Sealing, as the host does it: a child process.
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "gswarm.profiler.seal", str(directory)], check=True, stdout=-3)
        sealing = time.perf_counter() - begin
        sealed = sum(path.stat().st_size for path in directory.iterdir())

        def first_chart() -> None:
            with Recording.open(directory) as opened:
                assert opened.series(["gpu_util_percent"])

        cold, _ = took(first_chart)  # imports pyarrow
        charts = [took(first_chart)[0] for _ in range(5)]
        loads = [took(lambda: json.loads(whole.read_bytes()))[0] for _ in range(3)]
        rng = random.Random(3)
        asked = [START_US + rng.randrange(options.seconds) * 1_000_000 for _ in range(options.seeks)]
        with Recording.open(directory) as opened:
            seeks = [show(opened, moment) for moment in asked]
        scans = []
        for moment in asked[:5]:
            begin = time.perf_counter()
            scan_to(journal, moment)
            scans.append(time.perf_counter() - begin)
        few = cpu_ratios(root, options.nodes, options.devices, 100)
        many = cpu_ratios(root, 100, options.devices, 12)
    seeks_ms = sorted(1000 * seek for seek in seeks)
    return {
        "benchmark": "recording",
        "devices": options.nodes * options.devices,
        "seconds": options.seconds,
        "metrics": len(COLUMNS),
        "size_vs_jsonl": round(sealed / plain_size(lines), 4),
        "bytes_a_device_sample": round(sealed / (options.nodes * options.devices * options.seconds), 2),
        "cpu_a_tick_vs_jsonl": round(few[0], 3),
        "cpu_a_tick_vs_jsonl_at_100_nodes": round(many[0], 3),
        "cpu_a_tick_vs_writing_json_alone_at_100_nodes": round(many[1], 3),
        "cpu_us_a_tick": round(few[2], 1),
        "cpu_us_a_tick_at_100_nodes": round(many[2], 1),
        "first_chart_vs_json_load": round(statistics.median(charts) / statistics.median(loads), 3),
        "first_chart_with_imports_vs_json_load": round(cold / statistics.median(loads), 3),
        "seek_p95_ms": round(float(np.percentile(seeks_ms, 95)), 1),
        "seek_p50_ms": round(float(np.percentile(seeks_ms, 50)), 1),
        "seek_vs_scan": round(statistics.median(seeks) / statistics.median(scans), 4),
        "sealing_s": round(sealing, 1),
    }


def plain_size(lines: list[str]) -> int:
    """Bytes of the JSON lines."""
    return sum(len(line) + 1 for line in lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("nodes", 8), ("devices", 8), ("seconds", 3600), ("seeks", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
