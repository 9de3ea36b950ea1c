"""The metric table: every metric's name with its unit, its wire type, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gswarm.v1 import profiler_pb2


class Type(Enum):
    """How a metric travels; each has its own NA."""

    F32 = "f32"
    I32 = "i32"
    U64 = "u64"


@dataclass(frozen=True, slots=True)
class Metric:
    """One column. `source` names the NVML call, or where else the value is read."""

    name: str
    unit: str
    type: Type
    source: str


METRICS: tuple[Metric, ...] = (
    Metric("gpu_util_percent", "%", Type.F32, "nvmlDeviceGetUtilizationRates().gpu"),
    Metric("memory_util_percent", "%", Type.F32, "nvmlDeviceGetUtilizationRates().memory"),
    Metric("temperature_c", "°C", Type.F32, "nvmlDeviceGetTemperature(NVML_TEMPERATURE_GPU)"),
    Metric("sm_clock_mhz", "MHz", Type.I32, "nvmlDeviceGetClockInfo(NVML_CLOCK_SM)"),
    Metric("memory_clock_mhz", "MHz", Type.I32, "nvmlDeviceGetClockInfo(NVML_CLOCK_MEM)"),
    Metric("fan_percent", "%", Type.F32, "nvmlDeviceGetFanSpeed()"),
    Metric("power_mw", "mW", Type.I32, "nvmlDeviceGetPowerUsage()"),
    Metric("load_1m", "", Type.F32, "os.getloadavg()[0] (CPU only)"),
    Metric("process_count", "", Type.I32, "nvmlDeviceGetComputeRunningProcesses()"),
    Metric("memory_used_bytes", "B", Type.U64, "nvmlDeviceGetMemoryInfo().used"),
    Metric("memory_total_bytes", "B", Type.U64, "nvmlDeviceGetMemoryInfo().total"),
    Metric("foreign_memory_bytes", "B", Type.U64, "memory of processes that gswarm did not start"),
    Metric("energy_mj", "mJ", Type.U64, "nvmlDeviceGetTotalEnergyConsumption()"),
)
BY_NAME = {metric.name: metric for metric in METRICS}
NOT_SUPPORTED = "not supported"

_WIRE = {
    Type.F32: profiler_pb2.COLUMN_TYPE_GAUGE_F32,
    Type.I32: profiler_pb2.COLUMN_TYPE_GAUGE_I32,
    Type.U64: profiler_pb2.COLUMN_TYPE_COUNTER_U64,
}
_GAUGES_IN_U64 = frozenset({"memory_used_bytes", "memory_total_bytes", "foreign_memory_bytes"})


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a value is not there."""

    reason: str


Value = float | int | Absent
Reading = dict[str, Value]
"""Metric name to value; a metric that is missing is `not supported`."""


def columns() -> list[profiler_pb2.MetricColumn]:
    """The table as wire columns."""
    return [profiler_pb2.MetricColumn(name=m.name, unit=m.unit, type=_WIRE[m.type]) for m in METRICS]


def is_counter(name: str) -> bool:
    """Whether a u64 metric only grows."""
    return BY_NAME[name].type is Type.U64 and name not in _GAUGES_IN_U64
