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
from gswarm.profiler.metrics import Group, Reading
from gswarm.v1 import cluster_pb2

GIB = 1 << 30
STATE_DIRECTORY = "simulated"
LIMIT = 512
_IDLE, _POWER_CAP = 0x1, 0x4
"""Clock-event reasons."""
_CAPPED = 0.97
_HEALTHY = (
    "ecc_corrected_volatile",
    "ecc_uncorrected_volatile",
    "ecc_corrected_aggregate",
    "ecc_uncorrected_aggregate",
    "retired_pages",
    "remapped_rows",
    "pcie_replays",
)
_PER_SOCKET = 4


@dataclass(frozen=True, slots=True)
class Model:
    """What a real device of this name has: memory in GiB, power cap and idle draw in W, clocks in MHz, links to others."""

    name: str
    memory_gib: int
    power_w: int
    idle_w: int
    clock_mhz: int
    memory_clock_mhz: int
    pcie_generation: int
    nvlinks: int
    has_gpm: bool


MODELS = {
    "H100": Model("NVIDIA H100 80GB HBM3", 80, 700, 70, 1980, 2619, 5, 18, True),
    "H200": Model("NVIDIA H200", 141, 700, 75, 1980, 3201, 5, 18, True),
    "A100": Model("NVIDIA A100-SXM4-80GB", 80, 400, 55, 1410, 1593, 4, 12, False),
    "L40S": Model("NVIDIA L40S", 48, 350, 35, 2520, 9001, 4, 0, False),
    "B200": Model("NVIDIA B200", 180, 1000, 140, 1965, 3996, 5, 18, True),
}


class SimulatedDevice:
    """One of them. Its load is what backends on it wrote into their state files."""

    simulated = True
    lost = ""
    processes: tuple[cluster_pb2.DeviceProcess, ...] = ()
    sampling: frozenset[Group] = frozenset()

    def __init__(self, node: str, index: int, model: Model, directory: Path | None = None) -> None:
        self.node, self.index, self.model = node, index, model
        self.id = f"SIM-{node}-{index}"
        self.directory = directory
        self._started = time.monotonic()
        self._energy_mj = 0.0
        self._last = time.monotonic()
        self._util = 0.0
        self.paths: list[cluster_pb2.DevicePath] = []

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
            paths=self.paths,
            numa_node=self.index // _PER_SOCKET,
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
        reading: Reading = {
            "gpu_util_percent": round(self._util * 100, 1),
            "memory_util_percent": round(self._util * 60, 1),
            "encoder_util_percent": 0,
            "decoder_util_percent": 0,
            "temperature_c": round(31 + 42 * self._util, 0),
            "memory_temperature_c": round(38 + 40 * self._util, 0),
            "power_mw": int(power * 1000),
            "process_count": 1 if memory else 0,
            "memory_used_bytes": memory,
            "memory_free_bytes": self.model.memory_gib * GIB - memory,
            "memory_total_bytes": self.model.memory_gib * GIB,
            "foreign_memory_bytes": 0,
            "energy_mj": int(self._energy_mj),
            "performance_state": 0 if self._util else 8,
            "clock_event_reasons": _POWER_CAP if self._util > _CAPPED else 0 if self._util else _IDLE,
            **self._clocks(),
            **self._health(),
        }
        if self.model.has_gpm:
            reading |= self._activity()
        return reading

    def _clocks(self) -> Reading:
        clock = self.model.clock_mhz if self._util else 345
        return {
            "sm_clock_mhz": clock,
            "graphics_clock_mhz": clock,
            "memory_clock_mhz": self.model.memory_clock_mhz,
            "sm_clock_max_mhz": self.model.clock_mhz,
            "graphics_clock_max_mhz": self.model.clock_mhz,
            "memory_clock_max_mhz": self.model.memory_clock_mhz,
            "power_limit_mw": self.model.power_w * 1000,
            "pcie_generation": self.model.pcie_generation,
            "pcie_width": 16,
        }

    def _health(self) -> Reading:
        """Nothing ever breaks here."""
        return dict.fromkeys(_HEALTHY, 0)

    def _activity(self) -> Reading:
        """What GPM would tell of a model that decodes: bound by memory more than by arithmetic."""
        return {
            "sm_active_percent": round(self._util * 92, 1),
            "sm_occupancy_percent": round(self._util * 31, 1),
            "tensor_active_percent": round(self._util * 38, 1),
            "fp16_active_percent": round(self._util * 6, 1),
            "fp32_active_percent": round(self._util * 4, 1),
            "fp64_active_percent": 0.0,
            "dram_active_percent": round(self._util * 71, 1),
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
    for device in devices:
        device.paths = [_path(device, other) for other in devices if other is not device]
    return devices


def _path(one: SimulatedDevice, other: SimulatedDevice) -> cluster_pb2.DevicePath:
    """NVSwitch between equals that have links; else PCIe, two on a switch, four on a socket."""
    nvlinks = one.model.nvlinks if one.model is other.model else 0
    if nvlinks:
        kind = cluster_pb2.PATH_KIND_NVLINK
    elif one.index // 2 == other.index // 2:
        kind = cluster_pb2.PATH_KIND_PIX
    elif one.index // _PER_SOCKET == other.index // _PER_SOCKET:
        kind = cluster_pb2.PATH_KIND_NODE
    else:
        kind = cluster_pb2.PATH_KIND_SYS
    return cluster_pb2.DevicePath(index=other.index, kind=kind, nvlinks=nvlinks)
