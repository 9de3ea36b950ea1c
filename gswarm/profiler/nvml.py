"""NVIDIA GPUs through nvitop: what a device does not give is absent with a reason, never 0."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import psutil

from gswarm.profiler.metrics import NOT_SUPPORTED, Absent, Reading, Value
from gswarm.v1 import cluster_pb2

log = logging.getLogger("gswarm.agent")
DISCOVERY_S = 10.0
"""A driver that does not say in this time what there is counts as hung."""


class _Call(NamedTuple):
    """An NVML call that gives a metric in its very unit; `part` is the field of what it returns."""

    function: str
    arguments: tuple[int, ...] = ()
    part: str = ""


# Asked of NVML itself: nvitop's getters give the same NA for "not supported" as for an error that passes, and 0 processes
# where it may not look. Numbers are NVML_TEMPERATURE_GPU, NVML_CLOCK_SM and NVML_CLOCK_MEM.
_CALLS = {
    "gpu_util_percent": _Call("nvmlDeviceGetUtilizationRates", (), "gpu"),
    "memory_util_percent": _Call("nvmlDeviceGetUtilizationRates", (), "memory"),
    "temperature_c": _Call("nvmlDeviceGetTemperature", (0,)),
    "sm_clock_mhz": _Call("nvmlDeviceGetClockInfo", (1,)),
    "memory_clock_mhz": _Call("nvmlDeviceGetClockInfo", (2,)),
    "fan_percent": _Call("nvmlDeviceGetFanSpeed"),
    "power_mw": _Call("nvmlDeviceGetPowerUsage"),
    "memory_used_bytes": _Call("nvmlDeviceGetMemoryInfo", (), "used"),
    "memory_total_bytes": _Call("nvmlDeviceGetMemoryInfo", (), "total"),
    "energy_mj": _Call("nvmlDeviceGetTotalEnergyConsumption"),
}
_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
_OF_PROCESSES = ("process_count", "foreign_memory_bytes")


class Gpu:
    """One GPU or MIG instance, identified by its NVML UUID."""

    simulated = False

    def __init__(self, node: str, index: int, device: Any) -> None:
        """Raises NVMLError when it does not even say which it is."""
        self.node, self.index = node, index
        self._handle = device.handle
        self._missing: set[_Call] = set()
        self.lost = ""
        self.id = str(_query("nvmlDeviceGetUUID", self._handle))
        self._name = str(device.name())
        self._memory = self._value(_Call("nvmlDeviceGetMemoryInfo", (), "total"))
        self._limit = self._value(_Call("nvmlDeviceGetPowerManagementLimit"))
        version = device.driver_version()
        self._driver = "" if version == "N/A" else str(version)

    def describe(self) -> cluster_pb2.Device:
        """What NVML said at start, and whether it still answers."""
        device = cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:gpu{self.index}",
            node=self.node,
            index=self.index,
            kind=cluster_pb2.DEVICE_KIND_MIG if self.id.startswith("MIG-") else cluster_pb2.DEVICE_KIND_GPU,
            name=self._name,
            phase=cluster_pb2.DEVICE_PHASE_LOST if self.lost else cluster_pb2.DEVICE_PHASE_READY,
            detail=self.lost,
            driver_version=self._driver,
        )
        if isinstance(self._memory, int):
            device.memory_bytes = self._memory
        if isinstance(self._limit, int):
            device.power_limit_mw = self._limit
        return device

    def read(self) -> Reading:
        """One sample. Raises nothing: a lost device gives reasons for every metric."""
        from nvitop import libnvml

        try:
            # Asked first, so that a GPU that is lost is told from one that is mute.
            _query("nvmlDeviceGetUUID", self._handle)
        except libnvml.NVMLError as error:
            self.lost = str(error)
            return _nothing(f"lost: {error}")
        self.lost = ""
        reading: Reading = {name: self._value(call) for name, call in _CALLS.items()}
        reading.update(self._processes())
        return reading

    def _value(self, call: _Call) -> Value:
        from nvitop import libnvml

        if call in self._missing:
            return Absent(NOT_SUPPORTED)
        try:
            told = _query(call.function, self._handle, *call.arguments)
        except (libnvml.NVMLError_NotSupported, libnvml.NVMLError_FunctionNotFound):
            self._missing.add(call)  # for good: not asked again every second
            return Absent(NOT_SUPPORTED)
        except libnvml.NVMLError as error:
            return Absent(str(error))
        number = getattr(told, call.part) if call.part else told
        return number if isinstance(number, int | float) else Absent(NOT_SUPPORTED)

    def _processes(self) -> Reading:
        from nvitop import libnvml

        found: dict[int, int | None] = {}
        try:
            for function in _PROCESSES:
                for process in _query(function, self._handle):
                    found[process.pid] = process.usedGpuMemory
        except (libnvml.NVMLError_NotSupported, libnvml.NVMLError_FunctionNotFound):
            return {name: Absent(NOT_SUPPORTED) for name in _OF_PROCESSES}
        except libnvml.NVMLError as error:
            return {name: Absent(str(error)) for name in _OF_PROCESSES}
        foreign: Value = 0
        for pid, used in found.items():
            if _is_ours(pid):
                continue
            if used is None or isinstance(foreign, Absent):
                foreign = Absent("not told for every process")
            else:
                foreign += used
        return {"process_count": len(found), "foreign_memory_bytes": foreign}

    def free_bytes(self) -> int | None:
        """Free memory as NVML sees it, foreign processes included."""
        value = self._value(_Call("nvmlDeviceGetMemoryInfo", (), "free"))
        return value if isinstance(value, int) else None


class Mute:
    """A GPU that is there but did not say which it is when the agent started: shown as lost until the next start."""

    simulated = False

    def __init__(self, node: str, index: int, reason: str) -> None:
        self.node, self.index, self.lost = node, index, reason
        self.id = f"GPU-unknown-{node}-{index}"

    def describe(self) -> cluster_pb2.Device:
        """A lost device."""
        return cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:gpu{self.index}",
            node=self.node,
            index=self.index,
            kind=cluster_pb2.DEVICE_KIND_GPU,
            name="NVIDIA GPU",
            phase=cluster_pb2.DEVICE_PHASE_LOST,
            detail=f"{self.lost}; restart the agent when it answers again",
        )

    def read(self) -> Reading:
        """Nothing, with the reason."""
        return _nothing(f"lost: {self.lost}")

    def free_bytes(self) -> int | None:
        """Not known."""
        return None


def discover(node: str) -> list[Gpu | Mute]:
    """The GPUs of this machine; none without a driver. MIG instances stand for their GPU.

    Blocks at most twice DISCOVERY_S, whatever the driver does.
    """
    from nvitop import Device, libnvml

    # Told in our words; nvitop writes a red FATAL ERROR on every machine that simply has no GPU.
    logging.getLogger(libnvml.LOGGER.name).setLevel(logging.CRITICAL + 1)

    def leaves(index: int) -> list[Any]:
        device = Device(index)
        if device.handle is None:
            raise libnvml.NVMLError_GpuIsLost
        return [Gpu(node, index, leaf) for leaf in device.to_leaf_devices()]

    counted, told = _Answer(lambda: int(_query("nvmlDeviceGetCount"))).wait(time.monotonic() + DISCOVERY_S)
    # At its exit nvitop waits two minutes for a call that hangs, to shut NVML down; the system does that as well.
    if wait_at_exit := getattr(libnvml, "_atexit_shutdown", None):
        atexit.unregister(wait_at_exit)
    if counted is None:
        log.log(logging.INFO if "not found" in told.lower() else logging.WARNING, "no NVIDIA GPUs: %s", told)
        return []
    answers = [_Answer(partial(leaves, index)) for index in range(counted)]
    until = time.monotonic() + DISCOVERY_S
    found: list[Gpu | Mute] = []
    for answer in answers:
        gpus, told = answer.wait(until)
        if gpus is None:
            log.warning("GPU %d: %s", len(found), told)
            gpus = [Mute(node, len(found), told)]
        for gpu in gpus:
            gpu.index = len(found)
            found.append(gpu)
    return found


class _Answer:
    """What a driver call gives, from a daemon thread of its own that is left behind if the call hangs."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._told: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="nvml-discovery", daemon=True).start()

    def _run(self) -> None:
        try:
            self._told.put((self._call(), ""))
        except Exception as error:  # a driver may raise anything
            self._told.put((None, str(error)))

    def wait(self, until: float) -> tuple[Any, str]:
        """Its result, or None and why there is none."""
        try:
            return self._told.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None, f"the driver did not answer in {DISCOVERY_S:.0f} s"


def _query(function: str, *arguments: Any) -> Any:
    """An NVML call. Raises NVMLError."""
    from nvitop import libnvml

    return libnvml.nvmlQuery(function, *arguments, ignore_errors=False)


def _nothing(reason: str) -> Reading:
    return {name: Absent(reason) for name in (*_CALLS, *_OF_PROCESSES)}


def _is_ours(pid: int) -> bool:
    try:
        return "GSWARM_SERVICE" in psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return pid == os.getpid()
