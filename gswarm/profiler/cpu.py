"""The machine's processor as a device."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import psutil

from gswarm.profiler.metrics import Reading
from gswarm.v1 import cluster_pb2


class Cpu:
    """All cores as one device; its memory is the machine's."""

    simulated = False

    def __init__(self, node: str) -> None:
        self.node = node
        machine = Path("/etc/machine-id")
        identity = machine.read_text().strip() if machine.exists() else platform.node()
        self.id = "CPU-" + hashlib.blake2b(f"{identity}/{node}".encode(), digest_size=8).hexdigest()
        psutil.cpu_percent()  # the first call only sets the mark that later ones measure from

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
        """Utilisation since the last read, memory in use, load."""
        memory = psutil.virtual_memory()
        reading: Reading = {
            "gpu_util_percent": psutil.cpu_percent(),
            "memory_used_bytes": memory.total - memory.available,
            "memory_total_bytes": memory.total,
            "load_1m": os.getloadavg()[0],
        }
        if frequency := psutil.cpu_freq():
            reading["sm_clock_mhz"] = int(frequency.current)
        return reading

    def free_bytes(self) -> int | None:
        """Memory that can be had without swapping."""
        return int(psutil.virtual_memory().available)


def _model_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "CPU"
