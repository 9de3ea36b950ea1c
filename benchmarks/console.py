"""What the console costs: bytes a second and CPU through a real pseudo-terminal, beside nvitop on the stub NVML.

Eight simulated devices sampled once a second. Every case runs for the same time, side by side, in this one run; what
counts is the ratio to nvitop at the same size. Prints one JSON line.

    python benchmarks/console.py [--seconds 12] [--sizes 120x40,160x50]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARM_S = 5.0


@dataclass
class Case:
    """A program in its own pseudo-terminal, and what it wrote and burnt."""

    name: str
    argv: list[str]
    env: dict[str, str]
    size: tuple[int, int]
    keys: bytes = b""
    process: subprocess.Popen[bytes] | None = None
    master: int = -1
    written: int = 0
    cpu_s: float = 0.0
    key_ms: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.master, slave = os.openpty()
        width, height = self.size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.process = subprocess.Popen(
            self.argv, stdin=slave, stdout=slave, stderr=slave, env=self.env, cwd=ROOT, start_new_session=True
        )
        os.close(slave)

    def drain(self, timeout: float) -> int:
        """Read what there is; the terminal never makes the program wait."""
        ready, _, _ = select.select([self.master], [], [], timeout)
        if not ready:
            return 0
        with contextlib.suppress(OSError):
            return len(os.read(self.master, 1 << 16))
        return 0

    def cpu(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.master >= 0:
            os.close(self.master)


@contextlib.contextmanager
def running(cases: list[Case]) -> Iterator[None]:
    try:
        for case in cases:
            case.start()
        yield
    finally:
        for case in cases:
            case.stop()


def measure(cases: list[Case], seconds: float) -> None:
    """All cases at once, for the same seconds."""
    with running(cases):
        end = time.monotonic() + WARM_S
        pressed = False
        while time.monotonic() < end:
            for case in cases:
                case.drain(0.01)
            if not pressed and time.monotonic() > end - WARM_S / 2:
                pressed = True
                for case in cases:
                    if case.keys:
                        os.write(case.master, case.keys)
        before = [case.cpu() for case in cases]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for case in cases:
                case.written += case.drain(0.005)
        for case, start in zip(cases, before, strict=True):
            case.cpu_s = case.cpu() - start
        for case in cases:
            if case.name.startswith("overview"):
                case.key_ms = key_times(case)


def key_times(case: Case, presses: int = 40) -> list[float]:
    """From a key to the first byte that answers it, between ticks or not."""
    out = []
    for i in range(presses):
        while case.drain(0.02):
            pass
        start = time.perf_counter()
        os.write(case.master, b"\x1b[B" if i % 8 < 4 else b"\x1b[A")
        if case.drain(1.0):
            out.append((time.perf_counter() - start) * 1000)
    return sorted(out)


def environment(**more: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "GSWARM_DIFF")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tui"), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**env, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": path, **more}


def nvitop_case(size: tuple[int, int], directory: Path) -> list[Case]:
    """nvitop over the tests' stub of libnvidia-ml.so.1: eight devices whose figures move every second."""
    sys.path.insert(0, str(ROOT))
    from tests.support import nvml

    if nvml.compiler() is None:
        return []
    env = environment(**nvml.Stub(directory, "devices 8", "moving").env)
    argv = [sys.executable, "-m", "nvitop", "--monitor", "full", "--interval", "1"]
    return [Case("nvitop", argv, env, size)]


def console_case(name: str, size: tuple[int, int], *, theme: str = "dark", keys: bytes = b"", diff: str = "1") -> Case:
    argv = [sys.executable, str(Path(__file__)), "--child", "--theme", theme]
    return Case(name, argv, environment(GSWARM_DIFF=diff), size, keys)


def child(theme: str) -> None:
    """The console on a fake swarm of one node with eight devices, one tick a second."""
    sys.path.insert(0, str(ROOT))
    from datetime import UTC, datetime

    from gswarm_tui.app import Console
    from gswarm_tui.feed import capture

    from tests.support.swarm import FakeFeed, FakeSwarm

    class Ticking(FakeFeed):
        async def run(self, show: object) -> None:
            assert callable(show)
            while True:
                show(capture(self.swarm.data, host=self.host, now=self.swarm.now))
                await asyncio.sleep(1.0)
                self.swarm.step()

    Console(Ticking(FakeSwarm(1, 8, now=datetime.now(UTC), tasks=40)), theme=f"gswarm-{theme}").run()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--sizes", default="120x40,160x50")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--theme", default="dark")
    options = parser.parse_args()
    if options.child:
        child(options.theme)
        return
    result: dict[str, object] = {"benchmark": "console", "devices": 8, "seconds": options.seconds}
    for text in options.sizes.split(","):
        width, _, height = text.partition("x")
        size = (int(width), int(height))
        cases = [
            console_case("devices", size, keys=b"1"),
            console_case("overview", size),
            console_case("overview ansi", size, theme="ansi"),
            console_case("overview without the diff layer", size, diff="0"),
        ]
        with tempfile.TemporaryDirectory() as rules:
            cases += nvitop_case(size, Path(rules))
            measure(cases, options.seconds)
        beside = next((c for c in cases if c.name == "nvitop"), None)
        rows = {}
        for case in cases:
            row: dict[str, object] = {
                "bytes_per_s": round(case.written / options.seconds),
                "cpu_percent": round(100 * case.cpu_s / options.seconds, 2),
            }
            if beside is not None and beside.written and case is not beside:
                row["bytes_to_nvitop"] = round(case.written / beside.written, 2)
                row["cpu_to_nvitop"] = round(case.cpu_s / beside.cpu_s, 2) if beside.cpu_s else None
            if case.key_ms:
                row["key_ms_p50"] = round(case.key_ms[len(case.key_ms) // 2], 1)
                row["key_ms_max"] = round(case.key_ms[-1], 1)
            rows[case.name] = row
        result[text] = rows
        if beside is None:
            result["note"] = "no C compiler for the stub NVML: nvitop was not run"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
