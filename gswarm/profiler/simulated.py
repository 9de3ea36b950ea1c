"""Devices that exist only as numbers, marked SIM wherever they appear; they follow what simulated backends do on them."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

from gswarm.errors import InvalidError
from gswarm.names import near
from gswarm.profiler.metrics import Reading
from gswarm.v1 import cluster_pb2

GIB = 1 << 30
STATE_DIRECTORY = "simulated"
LIMIT = 512


@dataclass(frozen=True, slots=True)
class Model:
    """What a real device of this name has: memory in GiB, power cap and idle draw in W, clock in MHz."""

    name: str
    memory_gib: int
    power_w: int
    idle_w: int
    clock_mhz: int


MODELS = {
    "H100": Model("NVIDIA H100 80GB HBM3", 80, 700, 70, 1980),
    "H200": Model("NVIDIA H200", 141, 700, 75, 1980),
    "A100": Model("NVIDIA A100-SXM4-80GB", 80, 400, 55, 1410),
    "L40S": Model("NVIDIA L40S", 48, 350, 35, 2520),
    "B200": Model("NVIDIA B200", 180, 1000, 140, 1965),
}


class SimulatedDevice:
    """One of them. Its load is what backends on it wrote into their state files."""

    simulated = True

    def __init__(self, node: str, index: int, model: Model, directory: Path | None = None) -> None:
        self.node, self.index, self.model = node, index, model
        self.id = f"SIM-{node}-{index}"
        self.directory = directory
        self._started = time.monotonic()
        self._energy_mj = 0.0
        self._last = time.monotonic()
        self._util = 0.0

    def describe(self) -> cluster_pb2.Device:
        """Marked as simulated in kind and name."""
        return cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:gpu{self.index}",
            node=self.node,
            index=self.index,
            kind=cluster_pb2.DEVICE_KIND_SIMULATED,
            name=f"SIM {self.model.name}",
            memory_bytes=self.model.memory_gib * GIB,
            power_limit_mw=self.model.power_w * 1000,
            phase=cluster_pb2.DEVICE_PHASE_READY,
            driver_version="simulated",
        )

    def _load(self) -> tuple[int, float]:
        """(memory in use, load from 0 to 1) of the backends on this device."""
        memory, load = 0, 0.0
        if self.directory is not None and self.directory.is_dir():
            for path in self.directory.glob("*.json"):
                try:
                    told = json.loads(path.read_text())
                except (OSError, ValueError):
                    continue
                if self.id in told["devices"]:
                    memory += int(told["memory_bytes"]) // len(told["devices"])
                    load += float(told["load"])
        return memory, min(1.0, load)

    def read(self) -> Reading:
        """Metrics that follow the load: utilisation eases towards it, power and heat follow utilisation."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        memory, load = self._load()
        wobble = 0.03 * math.sin((now - self._started) * 0.7 + self.index) if load else 0.0
        target = max(0.0, min(1.0, load + wobble))
        self._util += (target - self._util) * (1 - math.exp(-elapsed / 0.8))
        if self._util < 0.005:
            self._util = 0.0
        power = self.model.idle_w + (self.model.power_w * 0.95 - self.model.idle_w) * self._util
        self._energy_mj += power * 1000 * elapsed
        return {
            "gpu_util_percent": round(self._util * 100, 1),
            "memory_util_percent": round(self._util * 60, 1),
            "temperature_c": round(31 + 42 * self._util, 0),
            "sm_clock_mhz": self.model.clock_mhz if self._util else 345,
            "memory_clock_mhz": 2619,
            "power_mw": int(power * 1000),
            "process_count": 1 if memory else 0,
            "memory_used_bytes": memory,
            "memory_total_bytes": self.model.memory_gib * GIB,
            "foreign_memory_bytes": 0,
            "energy_mj": int(self._energy_mj),
        }

    def free_bytes(self) -> int | None:
        """Memory no backend has."""
        return self.model.memory_gib * GIB - self._load()[0]


def parse(node: str, text: str, *, first_index: int = 0) -> list[SimulatedDevice]:
    """Devices of "8xH100" or "2xA100+4xH100". Raises InvalidError naming what is known."""
    if not text:
        return []
    from gswarm.client.identity import agents_dir

    directory = agents_dir() / node / STATE_DIRECTORY
    devices: list[SimulatedDevice] = []
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,4})\s*[xX×*]\s*)?([A-Za-z0-9]+)\s*", part)
        if match is None:
            raise InvalidError(
                f"{text!r} is no simulation", next="write for example 8xH100 or 2xA100+1xH200", field="simulate"
            )
        model = MODELS.get(match[2].upper())
        if model is None:
            raise InvalidError(
                f"there is no simulated {match[2]}", next=near(match[2].upper(), MODELS), field="simulate"
            )
        count = int(match[1] or 1)
        if not 0 < count <= LIMIT - len(devices):
            raise InvalidError(f"{text} is not 1 to {LIMIT} devices", field="simulate")
        devices += [SimulatedDevice(node, first_index + len(devices) + i, model, directory) for i in range(count)]
    return devices
