"""NVIDIA GPUs through nvitop: what a device does not give is absent with a reason, never 0."""

from __future__ import annotations

import logging
import os
from typing import Any

import psutil

from gswarm.profiler.metrics import Absent, Reading, Value
from gswarm.v1 import cluster_pb2

log = logging.getLogger("gswarm.agent")


class Gpu:
    """One GPU or MIG instance, identified by its NVML UUID."""

    simulated = False

    def __init__(self, node: str, index: int, device: Any) -> None:
        self.node, self.index = node, index
        self._device = device
        self.id: str = str(device.uuid())
        self._name = str(device.name())
        self._memory = _number(device.memory_total())
        self._limit = _number(device.power_limit())
        self._driver = _driver_version(device)
        self.lost = ""
        self._missing: set[str] = set()

    def describe(self) -> cluster_pb2.Device:
        """What NVML said at start, and whether it still answers."""
        device = cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:gpu{self.index}",
            node=self.node,
            index=self.index,
            kind=cluster_pb2.DEVICE_KIND_MIG if self.id.startswith("MIG-") else cluster_pb2.DEVICE_KIND_GPU,
            name=self._name,
            memory_bytes=self._memory if isinstance(self._memory, int) else 0,
            phase=cluster_pb2.DEVICE_PHASE_LOST if self.lost else cluster_pb2.DEVICE_PHASE_READY,
            detail=self.lost,
            driver_version=self._driver,
        )
        if isinstance(self._limit, int):
            device.power_limit_mw = self._limit
        return device

    def read(self) -> Reading:
        """One sample. Raises nothing: a lost device gives reasons for every metric."""
        from nvitop import libnvml

        try:
            # nvitop turns most NVML errors into NA; presence is asked of NVML itself, so that a lost GPU is told from a mute one.
            libnvml.nvmlQuery("nvmlDeviceGetUUID", self._device.handle, ignore_errors=False)
        except libnvml.NVMLError as error:
            self.lost = str(error)
            gone: Reading = {name: Absent(f"lost: {error}") for name in (*_READERS, "foreign_memory_bytes")}
            return gone
        self.lost = ""
        reading: Reading = {}
        for name, method in _READERS.items():
            if name in self._missing:
                reading[name] = Absent("not supported")
                continue
            value = _number(_call(self._device, method))
            if isinstance(value, Absent) and value.reason == "not supported":
                self._missing.add(name)
            reading[name] = value
        reading.update(self._processes())
        return reading

    def _processes(self) -> Reading:
        processes = _call(self._device, "processes")
        if not isinstance(processes, dict):
            return {"process_count": Absent("not supported"), "foreign_memory_bytes": Absent("not supported")}
        foreign: Value = 0
        for pid, process in processes.items():
            used = _number(_call(process, "gpu_memory"))
            if _is_ours(pid):
                continue
            foreign = (
                Absent("not told for every process")
                if isinstance(used, Absent) or isinstance(foreign, Absent)
                else foreign + used
            )
        return {"process_count": len(processes), "foreign_memory_bytes": foreign}

    def free_bytes(self) -> int | None:
        """Free memory as NVML sees it, foreign processes included."""
        value = _number(_call(self._device, "memory_free"))
        return value if isinstance(value, int) else None


# Metric to the nvitop Device method that gives it in that very unit.
_READERS = {
    "gpu_util_percent": "gpu_utilization",
    "memory_util_percent": "memory_utilization",
    "temperature_c": "temperature",
    "sm_clock_mhz": "sm_clock",
    "memory_clock_mhz": "memory_clock",
    "fan_percent": "fan_speed",
    "power_mw": "power_usage",
    "memory_used_bytes": "memory_used",
    "memory_total_bytes": "memory_total",
    "energy_mj": "total_energy_consumption",
}


def discover(node: str) -> list[Gpu]:
    """The GPUs of this machine; none without a driver. MIG instances stand for their GPU."""
    from nvitop import Device, libnvml

    try:
        found = Device.all()
    except libnvml.NVMLError as error:
        log.info("no NVIDIA GPUs: %s", error)
        return []
    leaves = [
        leaf
        for device in found
        for leaf in (device.to_leaf_devices() if hasattr(device, "to_leaf_devices") else [device])
    ]
    return [Gpu(node, index, device) for index, device in enumerate(leaves)]


def _call(target: Any, method: str) -> Any:
    from nvitop import libnvml

    function = getattr(target, method, None)
    if function is None:
        return Absent("not supported")
    try:
        return function()
    except libnvml.NVMLError as error:
        return Absent(str(error))
    except psutil.Error as error:
        return Absent(str(error))


def _number(value: Any) -> Any:
    """A plain int or float, or Absent: nvitop's NA is a str that no arithmetic may ever see."""
    if isinstance(value, Absent):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Absent("not supported") if value != value else value
    return Absent("not supported")


def _driver_version(device: Any) -> str:
    version = _call(device, "driver_version")
    return version if isinstance(version, str) else ""


def _is_ours(pid: int) -> bool:
    try:
        return "GSWARM_SERVICE" in psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return pid == os.getpid()
