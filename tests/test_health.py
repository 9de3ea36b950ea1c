"""The lines of a device's page: what is wrong stands first and stands out, figures have units, what is missing says why."""

from __future__ import annotations

from gswarm_tui import health

from gswarm.cluster.types import Device, DevicePath, PathKind
from gswarm.profiler.metrics import METRICS

GPU = Device(
    id="GPU-1",
    alias="n1:gpu0",
    paths=tuple(DevicePath(i, PathKind.NVLINK, 18) for i in range(1, 8)),
    cpu_affinity="0-31",
    numa_node=0,
)
VALUES: dict[str, float] = {
    "clock_event_reasons": 0x44,
    "xid_last": 79,
    "ecc_corrected_volatile": 3,
    "ecc_uncorrected_volatile": 1,
    "sm_clock_mhz": 1200,
    "sm_clock_max_mhz": 1980,
    "performance_state": 2,
    "pcie_generation": 4,
    "pcie_width": 16,
    "pcie_rx_kib_per_s": 2 * 1024 * 1024,
    "pcie_tx_kib_per_s": 512,
    "retired_pages": 2,
}


def shown(
    values: dict[str, float], reasons: dict[str, str] | None = None, device: Device = GPU
) -> dict[str, tuple[str, str]]:
    """Label to text and style."""
    found = {}
    for label, *rest in health.lines(device, values, reasons or {}, ()):
        found[label[0].strip()] = ("".join(text for text, _ in rest), rest[0][1])
    return found


def test_what_is_wrong_is_named_and_stands_first() -> None:
    found = shown(VALUES)
    assert list(found)[:3] == ["throttled", "last XID", "ECC errors"]
    assert found["throttled"] == ("power cap, hardware thermal slowdown", "failed")
    assert found["last XID"] == ("79", "failed") and found["ECC errors"] == ("3 corrected, 1 not", "failed")
    assert found["memory"][0] == "2 pages retired"


def test_a_power_cap_and_idling_are_no_alarm() -> None:
    assert shown({"clock_event_reasons": 0x4})["throttled"] == ("power cap", "text")
    assert shown({"clock_event_reasons": 0})["throttled"] == ("no", "text")


def test_figures_have_their_units_and_their_bounds() -> None:
    found = shown(VALUES)
    assert found["clocks"][0] == "SM 1200/1980 MHz  P2"
    assert found["PCIe"][0] == "gen 4 ×16  in 2.0G/s  out 512k/s"
    assert found["ways"][0] == "NV18 gpu1…gpu7 (7)" and found["near"][0] == "CPUs 0-31, NUMA node 0"


def test_what_fails_says_why_and_what_is_never_given_is_one_line() -> None:
    found = shown({}, {"fan_percent": "not supported", "ofa_util_percent": "not supported", "power_mw": "GPU is lost"})
    assert found["power"] == ("NA: GPU is lost", "faint")
    assert found["not given"] == ("fan, ofa util", "faint")


def test_no_metric_of_the_table_is_left_out_or_shown_as_something_it_is_not() -> None:
    for metric in METRICS:
        lines = health.lines(Device(alias="n1:cpu"), {metric.name: 1.0}, {}, ())
        assert not any("NA:" in text for line in lines for text, _ in line)
    every = shown({m.name: 1.0 for m in METRICS})
    assert {"load", "disk", "network", "agent", "NVLink", "BAR1", "SMs", "engines", "heat"} <= every.keys()
    assert not any(label.startswith("nvlink1") for label in every)


def test_a_metric_that_a_user_named_is_shown_too() -> None:
    assert shown({"memory_percent": 7.5})["memory"][0] == "8 %"
