"""Devices that exist only as numbers: marked as such, whole in the common metrics, like their model in what they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from gswarm.profiler.metrics import BY_NAME, Absent
from gswarm.profiler.simulated import MODELS, SimulatedDevice, parse
from gswarm.v1 import cluster_pb2


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))


def way(one: SimulatedDevice, other: SimulatedDevice) -> tuple[str, int]:
    """How one reaches another."""
    (path,) = (path for path in one.paths if path.index == other.index)
    return cluster_pb2.PathKind.Name(path.kind).removeprefix("PATH_KIND_"), path.nvlinks


@pytest.mark.parametrize("name", MODELS)
def test_each_model_gives_numbers_of_the_table_that_add_up(name: str) -> None:
    (device,) = parse("n1", name)
    reading = device.read()
    assert reading.keys() <= BY_NAME.keys() and not any(isinstance(value, Absent) for value in reading.values())
    used, free, total = (reading[f"memory_{part}_bytes"] for part in ("used", "free", "total"))
    assert not isinstance(used, Absent) and not isinstance(free, Absent) and used + free == total
    described = device.describe()
    assert described.name.startswith("SIM ") and described.kind == cluster_pb2.DEVICE_KIND_SIMULATED
    assert reading["power_limit_mw"] == described.power_limit_mw and reading["clock_event_reasons"] == 0x1  # idle


def test_only_hopper_and_newer_have_gpm() -> None:
    hopper, ampere = parse("n1", "1xH100+1xA100")
    assert "tensor_active_percent" in hopper.read() and "tensor_active_percent" not in ampere.read()


def test_equals_with_nvlink_are_on_one_switch_and_others_on_pcie() -> None:
    h100s, l40s = parse("n1", "8xH100"), parse("n2", "8xL40S")
    assert all(way(a, b) == ("NVLINK", 18) for a in h100s for b in h100s if a is not b)
    assert [way(l40s[0], l40s[i]) for i in (1, 2, 4)] == [("PIX", 0), ("NODE", 0), ("SYS", 0)]
    mixed = parse("n3", "1xH100+1xA100")
    assert way(mixed[0], mixed[1]) == ("PIX", 0)
