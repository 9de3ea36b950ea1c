"""Replay: from asking for a random second of an hour of 64 devices to the whole frame in a real pseudo-terminal.

The hour of benchmarks/recording.py, with devices, models, services, a queue of 400 tasks and lanes that are planned anew
every second, sealed by the real code. A `gswarm-tui --from` on it is paused and sent to random seconds through its own
prompt; a frame is whole when its header shows the time asked for and the last byte of it has come. Beside that: the
journal scanned from its start up to the same moments, drawing nothing. Opening is the same up to the first frame, from
the start of the process, beside a console on two minutes of the same cluster. Prints one JSON line.

    python benchmarks/replay.py [--nodes 8] [--devices 8] [--seconds 3600] [--seeks 40] [--size 120x40]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyte
from google.protobuf.message import Message
from recording import GIB, LIST_EVERY, START_US, Layouts, changes, scan_to, schemas, watch, wire_ticks

from gswarm.kinds import BY_MESSAGE, key_of, wire_of
from gswarm.profiler.journal import FORMAT, Record, Writer, frame
from gswarm.profiler.manifest import Manifest, files
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, queue_pb2

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("smollm2", "llama-8b", "qwen-7b", "sdxl", "whisper", "phi-4")
QUIET_S = 0.06
"""A frame is written at once: after so long without a byte it was whole."""
KEPT_EVENTS = 1000
State = dict[tuple[int, str], bytes]


def wired(revision: int, *messages: Message) -> State:
    """Messages as a watch carries them."""
    found: State = {}
    for message in messages:
        kind, key = BY_MESSAGE[type(message)].kind, key_of(message)
        found[kind, key] = wire_of(kind, key, revision, message.SerializeToString())
    return found


def at(second: float) -> datetime:
    """A second of the recording as a time."""
    return datetime.fromtimestamp(START_US / 1e6 + second, UTC)


def furniture(layouts: Layouts) -> list[Message]:
    """What stands in the cluster all the time."""
    made: list[Message] = []
    for name in MODELS:
        made.append(models_pb2.Model(name=name, size_bytes=15 * GIB, simulated=True))
    for node, schema in layouts.items():
        standing = cluster_pb2.Node(name=node, cpu_count=64, phase=cluster_pb2.NODE_PHASE_READY)
        standing.last_seen.FromDatetime(at(0))
        made.append(standing)
        for index, key in enumerate(schema.device_ids):
            made.append(
                cluster_pb2.Device(
                    id=key,
                    alias=f"{node}:gpu{index}",
                    node=node,
                    index=index,
                    kind=cluster_pb2.DEVICE_KIND_SIMULATED,
                    name="NVIDIA H100 80GB",
                    memory_bytes=80 * GIB,
                    power_limit_mw=700_000,
                    phase=cluster_pb2.DEVICE_PHASE_READY,
                )
            )
            model = MODELS[(len(made) * 7) % len(MODELS)]
            service = models_pb2.Service(name=f"{model}-{key}", model=model, node=node, device_ids=[key])
            service.phase = models_pb2.SERVICE_PHASE_READY
            service.created_at.FromDatetime(at(index))
            made.append(service)
    return made


def lane(second: int, device: str, alias: str, rng: random.Random) -> list[Message]:
    """What a device is planned to do from a second on, and the plan."""
    made = queue_pb2.Lane(device_id=device, alias=alias)
    start = float(second)
    for number in range(6):
        block = made.blocks.add(model=rng.choice(MODELS), count=4, load_s=3.0, running=number == 0, runs_seen=9)
        block.task_ids.extend(str(rng.randrange(1, 400)) for _ in range(4))
        block.start.FromDatetime(at(start))
        start += rng.randrange(10, 90)
        block.end.FromDatetime(at(start))
    plan = queue_pb2.Plan(strategy="online", swaps=6, swaps_first_come=41, ready=200, running=64, wait_bound_s=60)
    plan.made_at.FromDatetime(at(second))
    return [made, plan]


def write(directory: Path, layouts: Layouts, seconds: int) -> None:
    """A journal of so many seconds, as a recorder frames it."""
    directory.mkdir()
    Manifest("bench", 1.0, format=FORMAT).write(directory)
    state = wired(1, *furniture(layouts))
    places = [(key, f"{node}:gpu{i}") for node, schema in layouts.items() for i, key in enumerate(schema.device_ids)]
    rng, revision, out, last = random.Random(2), 1, bytearray(), -1
    events: State = {}
    writer = Writer(files(directory, 1).journal)
    for second, wire, tick in wire_ticks(len(layouts), len(places) // len(layouts), seconds):
        now = tick.time_unix_us + 900
        if second != last:
            last = second
            if second % LIST_EVERY == 0:
                out += frame(Record.LIST, now, watch(state | events, revision, now, whole=True))
                for schema in layouts.values():
                    out += frame(Record.SCHEMA, now, schema.SerializeToString())
            revision += 1
            changed = changes(second, revision, rng) | wired(revision, *lane(second, *rng.choice(places), rng))
            for (kind, key), body in changed.items():
                (events if kind == common_pb2.KIND_EVENT else state)[kind, key] = body
            while len(events) > KEPT_EVENTS:
                del events[next(iter(events))]
            out += frame(Record.BATCH, now, watch(changed, revision, now, whole=False))
        out += frame(Record.TICK, now, wire)
    writer.append(bytes(out))
    writer.close()


class Screen:
    """A console on a recording in a pseudo-terminal, and an emulator of it."""

    def __init__(self, recording: Path, width: int, height: int) -> None:
        self.began = time.perf_counter()
        self.emulated = pyte.Screen(width, height)
        self.stream = pyte.ByteStream(self.emulated)
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        path = os.pathsep.join([str(ROOT), str(ROOT / "tui")])
        hidden = ("NO_COLOR", "GSWARM_DIFF")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        env |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": path, "TZ": "UTC"}
        argv = [sys.executable, "-m", "gswarm_tui", "--from", str(recording)]
        self.child = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)

    def press(self, keys: str) -> float:
        """Type; the moment of it."""
        now = time.perf_counter()
        os.write(self.master, keys.encode())
        return now

    def frame(self, whole: Callable[[str], bool], limit_s: float = 30.0) -> float:
        """Read until the first line is as wanted and nothing follows; the moment of the last byte."""
        end, last, unread = time.perf_counter() + limit_s, 0.0, b""
        while True:
            if select.select([self.master], [], [], QUIET_S)[0]:
                unread += os.read(self.master, 1 << 16)
                last = time.perf_counter()
                continue
            # The emulator is slow: it sees the bytes only once the frame is through.
            self.stream.feed(unread.replace(b"\x1b[>25u", b"").replace(b"\x1b[<u", b""))
            unread = b""
            if last and whole(self.emulated.display[0]):
                return last
            if time.perf_counter() > end:
                raise TimeoutError("\n".join(self.emulated.display))

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)


@contextmanager
def opened(recording: Path, size: tuple[int, int]) -> Iterator[tuple[Screen, float]]:
    """A paused console, and how many seconds it took to its first frame."""
    screen = Screen(recording, *size)
    try:
        # It plays from the start, so a frame follows every quarter of a second.
        while "replay bench" not in screen.emulated.display[0]:
            select.select([screen.master], [], [], 30)
            screen.stream.feed(os.read(screen.master, 1 << 16).replace(b"\x1b[>25u", b"").replace(b"\x1b[<u", b""))
        took = time.perf_counter() - screen.began
        screen.press(",")
        screen.frame(lambda line: "paused" in line)
        yield screen, took
    finally:
        screen.close()


def seek(screen: Screen, second: int) -> float:
    """Seconds from the enter key to the last byte of the frame of a second."""
    screen.press("g")
    screen.frame(lambda _: "go to" in screen.emulated.display[-2])
    screen.press(f"+{second}s")
    screen.frame(lambda _: f"+{second}s" in screen.emulated.display[-2])
    begin = screen.press("\r")
    return screen.frame(lambda line: f"{at(second):%H:%M:%S}" in line) - begin


def measure(options: argparse.Namespace) -> Mapping[str, object]:
    """Everything, in one directory."""
    layouts = schemas(options.nodes, options.devices)
    width, _, height = options.size.partition("x")
    size = (int(width), int(height))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        hour, short = root / "hour", root / "short"
        write(hour, layouts, options.seconds)
        write(short, layouts, min(120, options.seconds))
        journal = files(hour, 1).journal.read_bytes()
        for directory in (hour, short):
            subprocess.run([sys.executable, "-m", "gswarm.profiler.seal", str(directory)], check=True, stdout=-3)
        opening: dict[Path, list[float]] = {hour: [], short: []}
        for directory, found in list(opening.items()) * 3:
            with opened(directory, size) as (_, took):
                found.append(took)
        rng = random.Random(3)
        asked = rng.sample(range(1, options.seconds), min(options.seeks, options.seconds - 1))
        with opened(hour, size) as (screen, _):
            seeks = [seek(screen, second) for second in asked]
        scans = []
        for second in asked[:5]:
            begin = time.perf_counter()
            scan_to(journal, START_US + second * 1_000_000)
            scans.append(time.perf_counter() - begin)
    seeks_ms = [1000 * one for one in seeks]
    return {
        "benchmark": "replay",
        "devices": options.nodes * options.devices,
        "seconds": options.seconds,
        "size": options.size,
        "seek_p50_ms": round(float(np.percentile(seeks_ms, 50)), 1),
        "seek_p95_ms": round(float(np.percentile(seeks_ms, 95)), 1),
        "first_seek_ms": round(seeks_ms[0], 1),
        "seek_vs_scan": round(statistics.median(seeks) / statistics.median(scans), 4),
        "scan_s": round(statistics.median(scans), 2),
        "first_frame_s": round(statistics.median(opening[hour]), 2),
        "first_frame_vs_two_minutes": round(statistics.median(opening[hour]) / statistics.median(opening[short]), 3),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("nodes", 8), ("devices", 8), ("seconds", 3600), ("seeks", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", default="120x40")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
