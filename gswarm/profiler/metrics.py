"""The metric table: every metric's name with its unit, its wire type, how often it is read, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from gswarm.v1 import profiler_pb2


class Type(Enum):
    """How a metric travels; each has its own NA."""

    F32 = "f32"
    I32 = "i32"
    U64 = "u64"
    COUNTER = "counter u64"
    MASK = "mask u64"


class Cadence(Enum):
    """How often a device is asked. A value that is not due keeps its last one."""

    TICK = "every tick"
    SLOW = "every 5 s"
    ONCE = "once"


class Group(Enum):
    """Metrics that are read only when that is asked for, because reading them is slow. Mirrors SamplingGroup."""

    PCIE = "pcie"
    NVLINK = "nvlink"


@dataclass(frozen=True, slots=True)
class Metric:
    """One column. `source` names the NVML call, or where else the value is read."""

    name: str
    unit: str
    type: Type
    source: str
    cadence: Cadence = Cadence.TICK
    group: Group | None = None


F32, I32, U64, COUNTER, MASK = Type
TICK, SLOW, ONCE = Cadence
SLOW_S = 5.0
"""What "every few seconds" is."""
NVLINK_LINKS = 18
"""Links of one GPU that have columns of their own: an H100 or B200 has so many."""


def _field(name: str, *, scope: str = "") -> str:
    return f"nvmlDeviceGetFieldValues(NVML_FI_DEV_{name}{scope})"


def _gpm(name: str) -> str:
    return f"nvmlGpmMetricsGet(NVML_GPM_METRIC_{name})"


def _per_link() -> tuple[Metric, ...]:
    return tuple(
        Metric(
            f"nvlink{link}_{way}_kib",
            "KiB",
            COUNTER,
            _field(f"NVLINK_THROUGHPUT_DATA_{way.upper()}", scope=f", {link}"),
            group=Group.NVLINK,
        )
        for link in range(NVLINK_LINKS)
        for way in ("rx", "tx")
    )


METRICS: tuple[Metric, ...] = (
    Metric("gpu_util_percent", "%", F32, "nvmlDeviceGetUtilizationRates().gpu; of a CPU: of all cores"),
    Metric("memory_util_percent", "%", F32, "nvmlDeviceGetUtilizationRates().memory"),
    Metric("encoder_util_percent", "%", F32, "nvmlDeviceGetEncoderUtilization()"),
    Metric("decoder_util_percent", "%", F32, "nvmlDeviceGetDecoderUtilization()"),
    Metric("jpeg_util_percent", "%", F32, "nvmlDeviceGetJpgUtilization()", SLOW),
    Metric("ofa_util_percent", "%", F32, "nvmlDeviceGetOfaUtilization()", SLOW),
    # What the SMs do, from NVML's GPM: Hopper and newer, neither root nor the profilers' lock.
    Metric("graphics_active_percent", "%", F32, _gpm("GRAPHICS_UTIL")),
    Metric("sm_active_percent", "%", F32, _gpm("SM_UTIL")),
    Metric("sm_occupancy_percent", "%", F32, _gpm("SM_OCCUPANCY")),
    Metric("tensor_active_percent", "%", F32, _gpm("ANY_TENSOR_UTIL")),
    Metric("fp16_active_percent", "%", F32, _gpm("FP16_UTIL")),
    Metric("fp32_active_percent", "%", F32, _gpm("FP32_UTIL")),
    Metric("fp64_active_percent", "%", F32, _gpm("FP64_UTIL")),
    Metric("integer_active_percent", "%", F32, _gpm("INTEGER_UTIL")),
    Metric("dram_active_percent", "%", F32, _gpm("DRAM_BW_UTIL")),
    Metric("temperature_c", "°C", F32, "nvmlDeviceGetTemperature(NVML_TEMPERATURE_GPU)"),
    Metric("memory_temperature_c", "°C", F32, _field("MEMORY_TEMP"), SLOW),
    Metric("temperature_slowdown_c", "°C", F32, "nvmlDeviceGetTemperatureThreshold(SLOWDOWN)", ONCE),
    Metric("temperature_shutdown_c", "°C", F32, "nvmlDeviceGetTemperatureThreshold(SHUTDOWN)", ONCE),
    Metric("sm_clock_mhz", "MHz", I32, "nvmlDeviceGetClockInfo(NVML_CLOCK_SM)"),
    Metric("memory_clock_mhz", "MHz", I32, "nvmlDeviceGetClockInfo(NVML_CLOCK_MEM)"),
    Metric("graphics_clock_mhz", "MHz", I32, "nvmlDeviceGetClockInfo(NVML_CLOCK_GRAPHICS)", SLOW),
    Metric("video_clock_mhz", "MHz", I32, "nvmlDeviceGetClockInfo(NVML_CLOCK_VIDEO)", SLOW),
    Metric("sm_clock_max_mhz", "MHz", I32, "nvmlDeviceGetMaxClockInfo(NVML_CLOCK_SM)", ONCE),
    Metric("memory_clock_max_mhz", "MHz", I32, "nvmlDeviceGetMaxClockInfo(NVML_CLOCK_MEM)", ONCE),
    Metric("graphics_clock_max_mhz", "MHz", I32, "nvmlDeviceGetMaxClockInfo(NVML_CLOCK_GRAPHICS)", ONCE),
    Metric("video_clock_max_mhz", "MHz", I32, "nvmlDeviceGetMaxClockInfo(NVML_CLOCK_VIDEO)", ONCE),
    Metric("performance_state", "", I32, "nvmlDeviceGetPerformanceState(): 0 is fastest"),
    Metric("clock_event_reasons", "", MASK, "nvmlDeviceGetCurrentClocksEventReasons()"),
    Metric("fan_percent", "%", F32, "nvmlDeviceGetFanSpeed()", SLOW),
    Metric("power_mw", "mW", I32, "nvmlDeviceGetPowerUsage()"),
    Metric("power_limit_mw", "mW", I32, "nvmlDeviceGetPowerManagementLimit()", SLOW),
    Metric("power_limit_max_mw", "mW", I32, "nvmlDeviceGetPowerManagementLimitConstraints()", ONCE),
    Metric("pcie_generation", "", I32, "nvmlDeviceGetCurrPcieLinkGeneration()", SLOW),
    Metric("pcie_width", "lanes", I32, "nvmlDeviceGetCurrPcieLinkWidth()", SLOW),
    Metric("pcie_generation_max", "", I32, "nvmlDeviceGetMaxPcieLinkGeneration()", ONCE),
    Metric("pcie_width_max", "lanes", I32, "nvmlDeviceGetMaxPcieLinkWidth()", ONCE),
    Metric(
        "pcie_rx_kib_per_s",
        "KiB/s",
        F32,
        f"{_gpm('PCIE_RX_PER_SEC')}; before Hopper nvmlDeviceGetPcieThroughput(RX), with `profiler sampling --pcie on`",
    ),
    Metric("pcie_tx_kib_per_s", "KiB/s", F32, "the same for what the device sends"),
    Metric("nvlink_rx_kib_per_s", "KiB/s", F32, _gpm("NVLINK_TOTAL_RX_PER_SEC")),
    Metric("nvlink_tx_kib_per_s", "KiB/s", F32, _gpm("NVLINK_TOTAL_TX_PER_SEC")),
    Metric("xid_last", "", I32, "nvmlEventSetWait_v2(XidCriticalError): the last since the agent's start"),
    Metric("process_count", "", I32, "nvmlDeviceGetComputeRunningProcesses(), ...GraphicsRunningProcesses()", SLOW),
    Metric("load_1m", "", F32, "os.getloadavg()[0] (CPU only)"),
    Metric("memory_used_bytes", "B", U64, "nvmlDeviceGetMemoryInfo().used"),
    Metric("memory_free_bytes", "B", U64, "nvmlDeviceGetMemoryInfo().free"),
    Metric("memory_total_bytes", "B", U64, "nvmlDeviceGetMemoryInfo().total"),
    Metric("foreign_memory_bytes", "B", U64, "memory of processes that gswarm did not start", SLOW),
    Metric("bar1_used_bytes", "B", U64, "nvmlDeviceGetBAR1MemoryInfo().bar1Used", SLOW),
    Metric("bar1_total_bytes", "B", U64, "nvmlDeviceGetBAR1MemoryInfo().bar1Total", SLOW),
    Metric("energy_mj", "mJ", COUNTER, "nvmlDeviceGetTotalEnergyConsumption()"),
    Metric("pcie_replays", "", COUNTER, _field("PCIE_REPLAY_COUNTER"), SLOW),
    Metric("ecc_corrected_volatile", "", COUNTER, _field("ECC_SBE_VOL_TOTAL"), SLOW),
    Metric("ecc_uncorrected_volatile", "", COUNTER, _field("ECC_DBE_VOL_TOTAL"), SLOW),
    Metric("ecc_corrected_aggregate", "", COUNTER, _field("ECC_SBE_AGG_TOTAL"), SLOW),
    Metric("ecc_uncorrected_aggregate", "", COUNTER, _field("ECC_DBE_AGG_TOTAL"), SLOW),
    Metric("retired_pages", "", COUNTER, f"{_field('RETIRED_SBE')} + RETIRED_DBE", SLOW),
    Metric("remapped_rows", "", COUNTER, f"{_field('REMAPPED_COR')} + REMAPPED_UNC", SLOW),
    Metric("nvlink_errors", "", COUNTER, _field("NVLINK_{REPLAY,RECOVERY,CRC_FLIT,CRC_DATA}_ERROR_COUNT_TOTAL"), SLOW),
    Metric("nvlink_rx_kib", "KiB", COUNTER, _field("NVLINK_THROUGHPUT_DATA_RX", scope=", all"), group=Group.NVLINK),
    Metric("nvlink_tx_kib", "KiB", COUNTER, _field("NVLINK_THROUGHPUT_DATA_TX", scope=", all"), group=Group.NVLINK),
    *_per_link(),
    # The machine, on its CPU device.
    Metric("swap_used_bytes", "B", U64, "psutil.swap_memory().used (CPU only)", SLOW),
    Metric("disk_used_bytes", "B", U64, "shutil.disk_usage(state directory).used (CPU only)", SLOW),
    Metric("disk_total_bytes", "B", U64, "shutil.disk_usage(state directory).total (CPU only)", SLOW),
    Metric("disk_read_bytes", "B", COUNTER, "psutil.disk_io_counters().read_bytes, all disks (CPU only)"),
    Metric("disk_written_bytes", "B", COUNTER, "psutil.disk_io_counters().write_bytes, all disks (CPU only)"),
    Metric("network_rx_bytes", "B", COUNTER, "psutil.net_io_counters().bytes_recv without loopback (CPU only)"),
    Metric("network_tx_bytes", "B", COUNTER, "psutil.net_io_counters().bytes_sent without loopback (CPU only)"),
    Metric("agent_cpu_percent", "%", F32, "time.process_time() of the agent itself, of one core (CPU only)"),
    Metric("agent_memory_bytes", "B", U64, "/proc/self/statm, resident memory of the agent itself (CPU only)"),
)
BY_NAME = {metric.name: metric for metric in METRICS}
NOT_SUPPORTED = "not supported"
CLOCK_EVENTS: tuple[tuple[int, str], ...] = (
    (0x001, "gpu idle"),
    (0x002, "application clocks"),
    (0x004, "power cap"),
    (0x008, "hardware slowdown"),
    (0x010, "sync boost"),
    (0x020, "software thermal slowdown"),
    (0x040, "hardware thermal slowdown"),
    (0x080, "power brake"),
    (0x100, "display clock"),
    (0x200, "board limit"),
    (0x400, "reliability"),
)
"""Bits of `clock_event_reasons` (nvmlClocksEventReason* in nvml.h) and what they are called."""
POWER_CAP = 0x004
THROTTLES = 0x008 | 0x020 | 0x040 | 0x080
"""Those of them that mean that the device is too hot or its power is failing; a power cap is by design."""

_WIRE = {
    Type.F32: profiler_pb2.COLUMN_TYPE_GAUGE_F32,
    Type.I32: profiler_pb2.COLUMN_TYPE_GAUGE_I32,
    Type.U64: profiler_pb2.COLUMN_TYPE_GAUGE_U64,
    Type.COUNTER: profiler_pb2.COLUMN_TYPE_COUNTER_U64,
    Type.MASK: profiler_pb2.COLUMN_TYPE_MASK_U64,
}


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a value is not there."""

    reason: str


UNSUPPORTED = Absent(NOT_SUPPORTED)
OFF = {group: Absent(f"not sampled; turn on with: gswarm profiler sampling --{group.value} on") for group in Group}
Value = float | int | Absent
Reading = dict[str, Value]
"""Metric name to value; a metric that is missing is `not supported`."""


def columns(metrics: Iterable[Metric] = METRICS) -> list[profiler_pb2.MetricColumn]:
    """Metrics as wire columns."""
    return [profiler_pb2.MetricColumn(name=m.name, unit=m.unit, type=_WIRE[m.type]) for m in metrics]


def is_counter(name: str) -> bool:
    """Whether a metric of the table only grows."""
    return BY_NAME[name].type is Type.COUNTER


def clock_events(mask: int) -> list[str]:
    """The names of the bits set in `clock_event_reasons`; a bit that has none is told as a number."""
    known = [name for bit, name in CLOCK_EVENTS if mask & bit]
    rest = mask & ~sum(bit for bit, _ in CLOCK_EVENTS)
    return known + ([hex(rest)] if rest else [])
