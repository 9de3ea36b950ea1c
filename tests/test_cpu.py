"""The machine as a device: figures that add up, counters that only grow, and what the agent itself costs."""

from __future__ import annotations

import time
from pathlib import Path

from gswarm.profiler.cpu import Cpu
from gswarm.profiler.metrics import BY_NAME, Absent, Reading, Type


def read(device: Cpu) -> Reading:
    """A sample; every value of the table and none that is missing a reason."""
    reading = device.read()
    assert not any(isinstance(value, Absent) and not value.reason for value in reading.values())
    assert reading.keys() <= BY_NAME.keys()
    return reading


def test_memory_adds_up_and_the_disk_is_that_of_the_state(tmp_path: Path) -> None:
    reading = read(Cpu("n1", tmp_path))
    used, free, total = (reading[f"memory_{name}_bytes"] for name in ("used", "free", "total"))
    assert not isinstance(used, Absent) and not isinstance(free, Absent) and used + free == total
    disk = reading["disk_used_bytes"], reading["disk_total_bytes"]
    assert all(isinstance(value, int) and value > 0 for value in disk)


def test_a_state_directory_that_is_gone_is_no_reason_to_lose_the_rest(tmp_path: Path) -> None:
    reading = read(Cpu("n1", tmp_path / "gone"))
    assert reading["disk_used_bytes"] == Absent("No such file or directory")
    assert reading["memory_total_bytes"] and reading["load_1m"] is not None


def test_counters_only_grow(tmp_path: Path) -> None:
    device = Cpu("n1", tmp_path)
    before, after = read(device), read(device)
    for name, value in before.items():
        now = after[name]
        if BY_NAME[name].type is Type.COUNTER and not isinstance(value, Absent) and not isinstance(now, Absent):
            assert now >= value


def test_the_agents_own_cost_is_measured_between_samples(tmp_path: Path) -> None:
    device = Cpu("n1", tmp_path)
    device.read()
    spent, began = time.process_time(), time.monotonic()
    while time.process_time() < spent + 0.05:
        pass
    cost = read(device)["agent_cpu_percent"]
    assert isinstance(cost, float) and cost >= 100 * 0.05 / (time.monotonic() - began) * 0.9
    memory = read(device)["agent_memory_bytes"]
    assert isinstance(memory, int) and memory > 1 << 20
