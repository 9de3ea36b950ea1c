"""The machine's processor as a device: with it the machine's memory, disks and network, and what the agent itself costs."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import time
from pathlib import Path

import psutil

from gswarm.profiler.metrics import SLOW_S, Absent, Group, Reading
from gswarm.v1 import cluster_pb2

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Cpu:
    """All cores as one device; its memory is the machine's."""

    simulated = False
    lost = ""
    processes: tuple[cluster_pb2.DeviceProcess, ...] = ()
    sampling: frozenset[Group] = frozenset()

    def __init__(self, node: str, state_dir: Path | None = None) -> None:
        """`state_dir` is where the agent keeps its state: the file system whose room matters."""
        self.node = node
        self._state_dir = state_dir or Path.cwd()
        machine = Path("/etc/machine-id")
        identity = machine.read_text().strip() if machine.exists() else platform.node()
        self.id = "CPU-" + hashlib.blake2b(f"{identity}/{node}".encode(), digest_size=8).hexdigest()
        psutil.cpu_percent()  # the first call only sets the mark that later ones measure from
        self._agent = (time.monotonic(), time.process_time())
        self._slow: Reading = {}
        self._slow_at = 0.0

    def describe(self) -> cluster_pb2.Device:
        """Name, cores, memory."""
        return cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:cpu",
            node=self.node,
            index=0,
            kind=cluster_pb2.DEVICE_KIND_CPU,
            name=_model_name(),
            memory_bytes=psutil.virtual_memory().total,
            phase=cluster_pb2.DEVICE_PHASE_READY,
        )

    def read(self) -> Reading:
        """Utilisation since the last read, memory in use, load, traffic since the machine's start."""
        now = time.monotonic()
        if now >= self._slow_at:
            self._slow, self._slow_at = self._read_slow(), now + SLOW_S
        memory = psutil.virtual_memory()
        reading: Reading = {
            **self._slow,
            "gpu_util_percent": psutil.cpu_percent(),
            "memory_used_bytes": memory.total - memory.available,
            "memory_free_bytes": memory.available,
            "memory_total_bytes": memory.total,
            "load_1m": os.getloadavg()[0],
        }
        if network := _network():
            reading["network_rx_bytes"], reading["network_tx_bytes"] = network
        if disks := psutil.disk_io_counters():
            reading["disk_read_bytes"], reading["disk_written_bytes"] = disks.read_bytes, disks.write_bytes
        reading |= self._own_cost(now)
        return reading

    def _read_slow(self) -> Reading:
        reading: Reading = {"swap_used_bytes": psutil.swap_memory().used}
        try:
            disk = shutil.disk_usage(self._state_dir)
            reading["disk_used_bytes"], reading["disk_total_bytes"] = disk.used, disk.total
        except OSError as error:
            reading["disk_used_bytes"] = reading["disk_total_bytes"] = Absent(error.strerror or str(error))
        if frequency := psutil.cpu_freq():
            reading["sm_clock_mhz"] = int(frequency.current)
            if frequency.max:
                reading["sm_clock_max_mhz"] = int(frequency.max)
        return reading

    def _own_cost(self, now: float) -> Reading:
        """Of this very process: the agent without the backends it started."""
        (before, spent), used = self._agent, time.process_time()
        reading: Reading = {}
        if now > before:
            reading["agent_cpu_percent"] = 100 * (used - spent) / (now - before)
        self._agent = (now, used)
        try:
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            reading["agent_memory_bytes"] = resident * _PAGE_BYTES
        except (OSError, ValueError, IndexError):
            reading["agent_memory_bytes"] = psutil.Process().memory_info().rss
        return reading

    def free_bytes(self) -> int | None:
        """Memory that can be had without swapping."""
        return int(psutil.virtual_memory().available)


def _network() -> tuple[int, int] | None:
    """Bytes received and sent by every interface but loopback."""
    try:
        found = [c for name, c in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    except OSError:
        return None
    return sum(c.bytes_recv for c in found), sum(c.bytes_sent for c in found)


@functools.cache
def _model_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "CPU"
