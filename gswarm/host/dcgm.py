"""Device metrics under the names, units and labels of dcgm-exporter, for dashboards and rules that were made for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gswarm.host.exposition import labels
from gswarm.v1 import cluster_pb2

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Field:
    """A field of dcgm-exporter: our value divided by `divide`, rounded when DCGM gives whole numbers."""

    name: str
    kind: str
    help: str
    divide: int = 1
    is_whole: bool = False


# Field names and help as in dcgm-exporter's default-counters.csv and dcp-metrics-included.csv.
FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "sm_clock_mhz": Field("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz)."),
        "memory_clock_mhz": Field("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz)."),
        "temperature_c": Field("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", is_whole=True),
        "memory_temperature_c": Field("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "Memory temperature (in C).", is_whole=True),
        "power_mw": Field("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W).", 1000),
        "power_limit_mw": Field("DCGM_FI_DEV_POWER_MGMT_LIMIT", "gauge", "Power management limit (in W).", 1000),
        "energy_mj": Field(
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Total energy consumption since boot (in mJ)."
        ),
        "pcie_replays": Field("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "Total number of PCIe retries."),
        "gpu_util_percent": Field("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", is_whole=True),
        "memory_util_percent": Field("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", is_whole=True),
        "encoder_util_percent": Field("DCGM_FI_DEV_ENC_UTIL", "gauge", "Encoder utilization (in %).", is_whole=True),
        "decoder_util_percent": Field("DCGM_FI_DEV_DEC_UTIL", "gauge", "Decoder utilization (in %).", is_whole=True),
        "fan_percent": Field("DCGM_FI_DEV_FAN_SPEED", "gauge", "Fan speed (in %).", is_whole=True),
        "xid_last": Field("DCGM_FI_DEV_XID_ERRORS", "gauge", "Value of the last XID error encountered."),
        "clock_event_reasons": Field(
            "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "gauge", "Current clock throttle reasons (bitmask)."
        ),
        "memory_free_bytes": Field("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).", MIB, True),
        "memory_used_bytes": Field("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", MIB, True),
        "memory_total_bytes": Field("DCGM_FI_DEV_FB_TOTAL", "gauge", "Total framebuffer memory (in MiB).", MIB, True),
        "ecc_corrected_volatile": Field(
            "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "counter", "Total number of single-bit volatile ECC errors."
        ),
        "ecc_uncorrected_volatile": Field(
            "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "counter", "Total number of double-bit volatile ECC errors."
        ),
        "sm_active_percent": Field(
            "DCGM_FI_PROF_SM_ACTIVE", "gauge", "The ratio of cycles an SM has at least 1 warp assigned.", 100
        ),
        "sm_occupancy_percent": Field(
            "DCGM_FI_PROF_SM_OCCUPANCY", "gauge", "The ratio of number of warps resident on an SM.", 100
        ),
        "tensor_active_percent": Field(
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", "Ratio of cycles the tensor (HMMA) pipe is active.", 100
        ),
        "fp64_active_percent": Field(
            "DCGM_FI_PROF_PIPE_FP64_ACTIVE", "gauge", "Ratio of cycles the fp64 pipes are active.", 100
        ),
        "fp32_active_percent": Field(
            "DCGM_FI_PROF_PIPE_FP32_ACTIVE", "gauge", "Ratio of cycles the fp32 pipes are active.", 100
        ),
        "fp16_active_percent": Field(
            "DCGM_FI_PROF_PIPE_FP16_ACTIVE", "gauge", "Ratio of cycles the fp16 pipes are active.", 100
        ),
        "dram_active_percent": Field(
            "DCGM_FI_PROF_DRAM_ACTIVE",
            "gauge",
            "Ratio of cycles the device memory interface is active sending or receiving data.",
            100,
        ),
    }
)


def value_of(field: Field, value: float | int) -> float | int:
    """Our value in the field's unit."""
    found = value / field.divide if field.divide != 1 else value
    return round(found) if field.is_whole else found


def labels_of(device: cluster_pb2.Device) -> str:
    """The labels of dcgm-exporter. Several nodes come from one host here: Hostname tells them apart, not `instance`."""
    return labels(
        {
            "gpu": str(device.index),
            "UUID": device.id,
            "device": f"nvidia{device.index}",
            "modelName": device.name,
            "Hostname": device.node,
            "DCGM_FI_DRIVER_VERSION": device.driver_version,
        }
    )
