"""How a GPU's metrics are read from NVML: single calls, field values, and GPM samples; what is not supported is asked once."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from nvitop import libnvml

from gswarm.profiler.metrics import BY_NAME, NVLINK_LINKS, UNSUPPORTED, Absent, Cadence, Group, Reading

NEVER = (libnvml.NVMLError_NotSupported, libnvml.NVMLError_FunctionNotFound)
"""Answers that will not change while the driver runs; any other error may pass."""
LOST = libnvml.NVMLError_GpuIsLost
_NEVER_CODES = frozenset({libnvml.NVML_ERROR_NOT_SUPPORTED, libnvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_FIELD_NEVER_CODES = _NEVER_CODES | {libnvml.NVML_ERROR_INVALID_ARGUMENT}
"""Of a field value: one that this driver does not know, or a link that this GPU does not have."""
_VALUE_SLOTS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""By nvmlValueType_t."""
_ALL_LINKS = 2**32 - 1
PSTATE_UNKNOWN = 32
KIB_OF_MIB = 1024.0


class Source(Protocol):
    """Some metrics of one device that are read together."""

    metrics: tuple[str, ...]
    cadence: Cadence
    group: Group | None

    def read(self, into: Reading) -> bool:
        """Put its metrics there, values or why there is none; False: they will never change, do not ask again.

        Raises LOST when the whole device is gone.
        """


class Call(NamedTuple):
    """An NVML function and which part of what it returns is which metric, in the metric's very unit; `older` is its old name."""

    function: str
    arguments: tuple[int, ...]
    parts: Mapping[str, str | int | None]
    older: str = ""


_CLOCKS = {"graphics": 0, "sm": 1, "memory": 2, "video": 3}
# Functions with several parts first answer for a metric of each tick: the others then cost nothing.
CALLS = (
    Call("nvmlDeviceGetUtilizationRates", (), {"gpu_util_percent": "gpu", "memory_util_percent": "memory"}),
    Call(
        "nvmlDeviceGetMemoryInfo",
        (),
        {"memory_used_bytes": "used", "memory_free_bytes": "free", "memory_total_bytes": "total"},
    ),
    Call("nvmlDeviceGetPowerUsage", (), {"power_mw": None}),
    Call("nvmlDeviceGetTotalEnergyConsumption", (), {"energy_mj": None}),
    Call("nvmlDeviceGetTemperature", (0,), {"temperature_c": None}),
    *(Call("nvmlDeviceGetClockInfo", (kind,), {f"{name}_clock_mhz": None}) for name, kind in _CLOCKS.items()),
    *(Call("nvmlDeviceGetMaxClockInfo", (kind,), {f"{name}_clock_max_mhz": None}) for name, kind in _CLOCKS.items()),
    Call("nvmlDeviceGetEncoderUtilization", (), {"encoder_util_percent": 0}),
    Call("nvmlDeviceGetDecoderUtilization", (), {"decoder_util_percent": 0}),
    Call("nvmlDeviceGetJpgUtilization", (), {"jpeg_util_percent": 0}),
    Call("nvmlDeviceGetOfaUtilization", (), {"ofa_util_percent": 0}),
    Call("nvmlDeviceGetPerformanceState", (), {"performance_state": None}),
    Call(
        "nvmlDeviceGetCurrentClocksEventReasons",
        (),
        {"clock_event_reasons": None},
        older="nvmlDeviceGetCurrentClocksThrottleReasons",
    ),
    Call("nvmlDeviceGetFanSpeed", (), {"fan_percent": None}),
    Call("nvmlDeviceGetPowerManagementLimit", (), {"power_limit_mw": None}),
    Call("nvmlDeviceGetPowerManagementLimitConstraints", (), {"power_limit_max_mw": 1}),
    Call("nvmlDeviceGetTemperatureThreshold", (1,), {"temperature_slowdown_c": None}),
    Call("nvmlDeviceGetTemperatureThreshold", (0,), {"temperature_shutdown_c": None}),
    Call("nvmlDeviceGetBAR1MemoryInfo", (), {"bar1_used_bytes": "bar1Used", "bar1_total_bytes": "bar1Total"}),
    Call("nvmlDeviceGetCurrPcieLinkGeneration", (), {"pcie_generation": None}),
    Call("nvmlDeviceGetCurrPcieLinkWidth", (), {"pcie_width": None}),
    Call("nvmlDeviceGetMaxPcieLinkGeneration", (), {"pcie_generation_max": None}),
    Call("nvmlDeviceGetMaxPcieLinkWidth", (), {"pcie_width_max": None}),
)
PCIE_THROUGHPUT = (
    Call("nvmlDeviceGetPcieThroughput", (1,), {"pcie_rx_kib_per_s": None}),
    Call("nvmlDeviceGetPcieThroughput", (0,), {"pcie_tx_kib_per_s": None}),
)

Field = tuple[int, int]
"""NVML_FI_DEV_* and its scope."""
HEALTH_FIELDS: Mapping[str, tuple[Field, ...]] = {
    "memory_temperature_c": ((82, 0),),
    "pcie_replays": ((94, 0),),
    "ecc_corrected_volatile": ((3, 0),),
    "ecc_uncorrected_volatile": ((4, 0),),
    "ecc_corrected_aggregate": ((5, 0),),
    "ecc_uncorrected_aggregate": ((6, 0),),
    "retired_pages": ((29, 0), (30, 0)),
    "remapped_rows": ((142, 0), (143, 0)),
    "nvlink_errors": ((38, 0), (45, 0), (52, 0), (59, 0)),
}
NVLINK_FIELDS: Mapping[str, tuple[Field, ...]] = {
    "nvlink_tx_kib": ((138, _ALL_LINKS),),
    "nvlink_rx_kib": ((139, _ALL_LINKS),),
    **{f"nvlink{link}_tx_kib": ((138, link),) for link in range(NVLINK_LINKS)},
    **{f"nvlink{link}_rx_kib": ((139, link),) for link in range(NVLINK_LINKS)},
}

GPM_METRICS: Mapping[str, tuple[int, float]] = {
    "graphics_active_percent": (1, 1.0),
    "sm_active_percent": (2, 1.0),
    "sm_occupancy_percent": (3, 1.0),
    "integer_active_percent": (4, 1.0),
    "tensor_active_percent": (5, 1.0),
    "dram_active_percent": (10, 1.0),
    "fp64_active_percent": (11, 1.0),
    "fp32_active_percent": (12, 1.0),
    "fp16_active_percent": (13, 1.0),
    "pcie_tx_kib_per_s": (20, KIB_OF_MIB),
    "pcie_rx_kib_per_s": (21, KIB_OF_MIB),
    "nvlink_rx_kib_per_s": (60, KIB_OF_MIB),
    "nvlink_tx_kib_per_s": (61, KIB_OF_MIB),
}
"""Metric to its NVML_GPM_METRIC_* and what its value is to be multiplied by: NVML tells MiB/s."""
_BETWEEN = Absent("measured between two samples")


class _GpmAnswer(ctypes.Structure):
    """nvmlGpmMetric_t, laid over pynvml's own in place: whose attributes take several times as long to read."""

    _fields_: ClassVar = [
        ("number", ctypes.c_uint),
        ("code", ctypes.c_uint),
        ("value", ctypes.c_double),
        ("names", ctypes.c_char_p * 3),
    ]


_ANSWERS_AT = libnvml.c_nvmlGpmMetricsGet_t.metrics.offset


class OneCall:
    """What one NVML function gives."""

    def __init__(self, handle: Any, call: Call) -> None:
        self._handle, self._arguments, self._parts = handle, call.arguments, tuple(call.parts.items())
        self.metrics = tuple(call.parts)
        first = BY_NAME[self.metrics[0]]
        self.cadence, self.group = first.cadence, first.group
        self._function: Callable[..., Any] = getattr(libnvml, call.function)
        self._older = call.older

    def read(self, into: Reading) -> bool:
        """One call, or two with an old driver."""
        try:
            told = self._function(self._handle, *self._arguments)
        except NEVER as error:
            if isinstance(error, libnvml.NVMLError_FunctionNotFound) and self._older:
                self._function, self._older = getattr(libnvml, self._older), ""
                return self.read(into)
            into.update(dict.fromkeys(self.metrics, UNSUPPORTED))
            return False
        except LOST:
            raise
        except libnvml.NVMLError as error:
            into.update(dict.fromkeys(self.metrics, Absent(str(error))))
            return True
        for metric, part in self._parts:
            if part is None:
                into[metric] = told
            else:
                into[metric] = told[part] if isinstance(part, int) else getattr(told, part)
        return self.cadence is not Cadence.ONCE


class PerformanceState(OneCall):
    """The P-state, which NVML may not know."""

    def read(self, into: Reading) -> bool:
        """As any call; 32 stands for unknown."""
        more = super().read(into)
        if into[self.metrics[0]] == PSTATE_UNKNOWN:
            into[self.metrics[0]] = Absent("not known to the driver")
        return more


class Fields:
    """Metrics that are field values, or sums of those of them that the device gives, in one call."""

    def __init__(self, handle: Any, fields: Mapping[str, tuple[Field, ...]], group: Group | None = None) -> None:
        self._handle = handle
        self._fields = {metric: list(parts) for metric, parts in fields.items()}
        self.metrics = tuple(fields)
        self.cadence, self.group = BY_NAME[self.metrics[0]].cadence, group

    def read(self, into: Reading) -> bool:
        """One call for all fields that are not known to be unsupported."""
        wanted = [field for parts in self._fields.values() for field in parts]
        try:
            values = iter(libnvml.nvmlDeviceGetFieldValues(self._handle, wanted))
        except NEVER:
            into.update(dict.fromkeys(self._fields, UNSUPPORTED))
            return False
        except libnvml.NVMLError as error:
            into.update(dict.fromkeys(self._fields, Absent(str(error))))
            return True
        for metric, parts in list(self._fields.items()):
            told = [(field, next(values)) for field in parts]
            parts[:] = [field for field, value in told if value.nvmlReturn not in _FIELD_NEVER_CODES]
            given = [value for _, value in told if value.nvmlReturn == libnvml.NVML_SUCCESS]
            if not parts:
                into[metric] = UNSUPPORTED
                del self._fields[metric]
            elif len(given) < len(parts):
                code = next(v.nvmlReturn for f, v in told if f in parts and v.nvmlReturn != libnvml.NVML_SUCCESS)
                into[metric] = Absent(str(libnvml.NVMLError(code)))
            else:
                into[metric] = sum(getattr(value.value, _VALUE_SLOTS[value.valueType]) for value in given)
        return bool(self._fields)


class Gpm:
    """GPU performance monitoring: what the SMs and links did between the sample before and this one."""

    cadence = Cadence.TICK
    group: Group | None = None

    def __init__(self, handle: Any, instance: tuple[Any, int] | None = None) -> None:
        """`instance` is the parent and GPU instance of a MIG device. Raises NVMLError where there is no GPM."""
        parent = instance[0] if instance else handle
        if not libnvml.nvmlGpmQueryDeviceSupport(parent).isSupportedDevice:
            raise libnvml.NVMLError_NotSupported
        self._handle, self._instance = handle, instance
        self._metrics = list(GPM_METRICS.items())
        self.metrics = tuple(GPM_METRICS)
        self._older, self._newer = libnvml.nvmlGpmSampleAlloc(), libnvml.nvmlGpmSampleAlloc()
        self._is_begun = False
        self._request = libnvml.c_nvmlGpmMetricsGet_t()
        self._request.version = libnvml.NVML_GPM_METRICS_GET_VERSION
        self._ask_for()

    def _ask_for(self) -> None:
        self._request.numMetrics = len(self._metrics)
        self._answers = list((_GpmAnswer * len(self._metrics)).from_buffer(self._request, _ANSWERS_AT))
        for answer, (_, (number, _)) in zip(self._answers, self._metrics, strict=True):
            answer.number = number

    def read(self, into: Reading) -> bool:
        """Take a sample, compare it with the one before."""
        try:
            if self._instance is None:
                libnvml.nvmlGpmSampleGet(self._handle, self._newer)
            else:
                libnvml.nvmlGpmMigSampleGet(*self._instance, self._newer)
            is_begun, self._is_begun = self._is_begun, True
            self._older, self._newer = self._newer, self._older
            if not is_begun:
                into.update((metric, _BETWEEN) for metric, _ in self._metrics)
                return True
            self._request.sample1, self._request.sample2 = self._newer, self._older
            libnvml.nvmlGpmMetricsGet(self._request)
        except LOST:
            raise
        except libnvml.NVMLError as error:
            into.update(dict.fromkeys((metric for metric, _ in self._metrics), Absent(str(error))))
            return True
        is_lasting = True
        for answer, (metric, (_, scale)) in zip(self._answers, self._metrics, strict=True):
            code = answer.code
            if not code:
                value = answer.value * scale
                into[metric] = value if math.isfinite(value) else Absent("not a number")
            elif code in _NEVER_CODES:
                into[metric], is_lasting = UNSUPPORTED, False
            else:
                into[metric] = Absent(str(libnvml.NVMLError(code)))
        if not is_lasting:
            self._metrics = [entry for entry in self._metrics if into[entry[0]] is not UNSUPPORTED]
            self._ask_for()
        return bool(self._metrics)


def sources(handle: Any, instance: tuple[Any, int] | None = None) -> list[Source]:
    """Where the metrics of a device come from; those of GPM where it has that, else of slower calls."""
    found: list[Source] = [
        (PerformanceState if "performance_state" in call.parts else OneCall)(handle, call) for call in CALLS
    ]
    found.append(Fields(handle, HEALTH_FIELDS))
    found.append(Fields(handle, NVLINK_FIELDS, Group.NVLINK))
    try:
        found.append(Gpm(handle, instance))
    except libnvml.NVMLError:
        for call in PCIE_THROUGHPUT:
            source = OneCall(handle, call)
            source.group = Group.PCIE
            found.append(source)
    return found
