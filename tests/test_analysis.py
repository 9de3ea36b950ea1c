"""Figures of a recording: known answers from recordings made by hand, and what holds of any series."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm import cli, net
from gswarm.catalogue import HostNeed
from gswarm.cluster.types import Severity
from gswarm.codec import to_plain
from gswarm.config import state_dir
from gswarm.errors import InvalidError, NotFoundError
from gswarm.model.types import ServicePhase
from gswarm.profiler import analysis, history, reading, report, tables
from gswarm.profiler.history import SpanKind
from gswarm.profiler.reading import host_for, located
from gswarm.profiler.recording import Recording
from gswarm.profiler.series import Column, Series
from gswarm.profiler.types import Analysis, DeviceFigures, Session, session_sealed
from gswarm.queue.types import Workflow, workflow_done
from gswarm.v1 import cluster_pb2, common_pb2
from tests.support.cluster import cluster, seen
from tests.support.processes import BIN
from tests.support.scripted import COLUMNS, Script, Values, at, gpu, lane, mark, service, task, us
from tests.support.sessions import sealed, session

G0, G1 = "GPU-n1-0", "GPU-n1-1"
BUSY: Values = {
    "gpu_util_percent": 80.0,
    "power_mw": 300_000,
    "memory_used_bytes": 60 << 30,
    "memory_total_bytes": 80 << 30,
    "clock_event_reasons": 0,
}
IDLE: Values = {**BUSY, "gpu_util_percent": 0.0, "power_mw": 100_000, "memory_used_bytes": 0, "clock_event_reasons": 1}


def analysed(script: Script) -> Analysis:
    with script.open() as recording:
        return analysis.analyse(recording.series(), history.read(recording))


def one(script: Script, device: str = G0) -> DeviceFigures:
    return next(found for found in analysed(script).devices if found.id == device)


def texts(found: Analysis) -> str:
    return "\n".join(finding.text for finding in found.findings)


# Reading


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    script = Script(tmp_path)
    schema = script.schema(0, [G0, G1])
    script.tick(0, schema, [BUSY, {"energy_mj": 2**63 + 1}])
    script.tick(1, schema, [IDLE, {}])
    script.schema(1.5, [G0, G1])  # announced again, as every minute
    script.tick(2, schema, [{**BUSY, "gpu_util_percent": None}, {"energy_mj": 2**63 + 5}])
    with script.open() as recording:
        first, second = recording.series()
    assert (first.node, first.device, second.device) == ("n1", G0, G1)
    assert first.times_us.tolist() == [us(0), us(1), us(2)]
    np.testing.assert_array_equal(first.numbers("gpu_util_percent"), [80, 0, np.nan])
    assert first.columns["power_mw"].values.tolist() == [300_000, 100_000, 300_000]
    energy = second.columns["energy_mj"]
    assert (energy.values[[0, 2]].tolist(), energy.known.tolist()) == ([2**63 + 1, 2**63 + 5], [True, False, True])
    assert energy.is_counter and not first.columns["memory_used_bytes"].is_counter
    assert first.columns["clock_event_reasons"].is_mask
    assert not second.has("power_mw") and np.isnan(second.numbers("no_such_metric")).all()


def test_a_layout_that_changes_leaves_na_where_there_was_no_column(tmp_path: Path) -> None:
    """An agent that starts anew may announce other devices and metrics under the same number."""
    script = Script(tmp_path)
    old = script.schema(0, [G0], ["gpu_util_percent"])
    script.tick(0, old, [{"gpu_util_percent": 10}])
    new = script.schema(1, [G1, G0], ["power_mw", "gpu_util_percent"])
    script.tick(1, new, [{"power_mw": 5}, {"gpu_util_percent": 20, "power_mw": 7}])
    with script.open() as recording:
        found = {each.device: each for each in recording.series()}
    np.testing.assert_array_equal(found[G0].numbers("gpu_util_percent"), [10, 20])
    np.testing.assert_array_equal(found[G0].numbers("power_mw"), [np.nan, 7])
    power = found[G1].numbers("power_mw")
    assert power[~np.isnan(power)].tolist() == [5]


def test_a_tick_that_is_not_as_long_as_its_layout_says_nothing(tmp_path: Path) -> None:
    script = Script(tmp_path)
    schema = script.schema(0, [G0])
    script.tick(0, schema, [BUSY])
    script.tick(1, schema, [BUSY], f32=b"\x00\x00")
    with script.open() as recording:
        (found,) = recording.series()
    util = found.numbers("gpu_util_percent")
    assert util[~np.isnan(util)].tolist() == [80]


def test_a_recording_without_samples_is_analysed_too(tmp_path: Path) -> None:
    script = Script(tmp_path, name="empty")
    script.state(0, everything=True)
    found = analysed(script)
    assert (found.devices, found.nodes, found.models, found.ticks) == ((), (), (), 0)
    assert "empty" in found.lines()[0] and "nothing stands out" in found.lines()


# Known answers


def test_figures_are_weighted_with_the_time_that_each_sample_stands_for(tmp_path: Path) -> None:
    """Adaptive sampling: one second busy, sampled ten times, then nine seconds idle, sampled once a second."""
    script = Script(tmp_path)
    schema = script.schema(0, [G0])
    for tenth in range(10):
        script.tick(tenth / 10, schema, [BUSY])
    for second in range(1, 10):
        script.tick(second, schema, [IDLE])
    found = one(script)
    util = found.figures("gpu_util_percent")
    assert util is not None and found.sampled_s == pytest.approx(10)
    assert util.mean == pytest.approx(8) and (util.p50, util.p95, util.max, util.min) == (0, 80, 80, 0)
    assert found.idle_share == pytest.approx(0.9)
    assert found.energy_j == pytest.approx(300 + 9 * 100) and found.energy_basis == "power"


def test_a_gap_stands_for_nothing_and_is_said(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.state(0, gpu(0), everything=True)
    schema = script.schema(0, [G0])
    for second in (*range(10), *range(100, 110)):
        script.tick(second, schema, [BUSY if second < 10 else IDLE])
    found = one(script)
    assert found.sampled_s == pytest.approx(22) and found.gaps_s == pytest.approx(88)
    assert found.energy_j == pytest.approx(12 * 300 + 10 * 100)
    assert "n1:gpu0 has no samples for 1m28" in texts(analysed(script))


def test_throttling_is_named_and_counted(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.state(0, gpu(0), everything=True)
    schema = script.schema(0, [G0])
    for second in range(100):
        reasons = 0x4 if second < 30 else 0x4 | 0x40 if second < 40 else 0x1 | 0x2 | 0x10 | 0x100
        script.tick(second, schema, [{**BUSY, "clock_event_reasons": reasons}])
    found = one(script)
    assert found.throttled_share == pytest.approx(0.4)
    assert {t.reason: round(t.share, 2) for t in found.throttled} == {
        "power cap": 0.4,
        "hardware thermal slowdown": 0.1,
    }
    assert "n1:gpu0 throttled 40 % of the time: power cap 40 %, hardware thermal slowdown 10 %" in texts(
        analysed(script)
    )


@pytest.mark.parametrize("column", ["clock_event_reasons", "gpu_util_percent", "power_mw", "memory_used_bytes"])
def test_what_was_not_recorded_is_na(tmp_path: Path, column: str) -> None:
    script = Script(tmp_path)
    schema = script.schema(0, [G0], [name for name in COLUMNS if name != column])
    for second in range(10):
        script.tick(second, schema, [BUSY])
    found = one(script, G0)
    figures = {
        "clock_event_reasons": found.throttled_share,
        "gpu_util_percent": found.idle_share,
        "power_mw": found.energy_j,
        "memory_used_bytes": found.head_room_bytes,
    }
    assert figures.pop(column) is None and None not in figures.values()
    assert not found.throttled


def test_idle_while_its_queue_had_ready_tasks(tmp_path: Path) -> None:
    """gpu0 idles 60 s: for 41 of them a task that the plan gave to it was ready. gpu1 idles without one."""
    script = Script(tmp_path)
    script.state(0, gpu(0), gpu(1), everything=True)
    schema = script.schema(0, [G0, G1])
    for second in range(100):
        script.tick(second, schema, [IDLE if second < 60 else BUSY, IDLE])
    script.state(9.5, task(1, "ready", ready=9.5), task(2, "waiting"))
    script.state(9.6, lane(G0, 1), lane(G1, 2))
    script.state(50.6, task(1, "running", device=G0, ready=9.5, started=50.6))
    script.state(50.7, lane(G0, running=[1]))
    found = analysed(script)
    assert [d.starved_share for d in found.devices] == [pytest.approx(0.41), 0.0]
    assert "n1:gpu0 idle 41 % of the time while ready tasks were queued there" in texts(found)
    assert "n1:gpu1 idle 100 % of the time; no task was ready there then" in texts(found)
    starved = next(f for f in found.findings if f.subject == "n1:gpu0")
    assert starved.severity is Severity.WARNING and "lane" in starved.evidence


def test_what_is_said_of_several_devices_of_a_node_is_said_once(tmp_path: Path) -> None:
    script = Script(tmp_path)
    names = {node: [gpu(index, node=node, simulated=True) for index in range(11)] for node in ("n1", "n2")}
    script.state(0, *names["n1"], *names["n2"], everything=True)
    for node, devices in names.items():
        schema = script.schema(0, [device.id for device in devices], node=node)
        for second in range(100):
            # One works, one works two seconds of the hundred; the others idle.
            rows: list[Values] = [IDLE] * 11
            rows[5], rows[7] = BUSY, BUSY if second < 2 else IDLE
            script.tick(second, schema, rows)
    found = analysed(script)
    idle = [f for f in found.findings if "idle" in f.text]
    assert [f.text for f in idle] == [
        f"gpu0-gpu4, gpu6-gpu10 of {node} (SIM) idle 98 to 100 % of the time; no task was ready there then"
        for node in ("n1", "n2")
    ]
    first = to_plain(idle[0])
    assert (first["subject"], first["evidence"]) == ("gpu0-gpu4, gpu6-gpu10 of n1", "gpu_util_percent, lane")
    shares = {of["device"]: of["share"] for of in first["devices"]}
    assert len(shares) == 10 and shares["n1:gpu0"] == first["share"] == 1.0
    assert shares["n1:gpu7"] == pytest.approx(0.98)
    said = "\n".join(found.lines())
    assert said.count("gpu0-gpu4, gpu6-gpu10 of n1 (SIM)") == 1 and said.count("n1:gpu7") == 2, "its row in each table"
    with script.open() as recording:
        page = "".join(report.pieces(found, recording.series(), history.read(recording)))
    assert page.count("gpu0-gpu4, gpu6-gpu10 of n1 (SIM) idle") == 1 and "(gpu_util_percent, lane)" in page


def test_devices_come_as_people_count_them(tmp_path: Path) -> None:
    """The ids of GPUs are in no order."""
    script = Script(tmp_path)
    devices = [gpu(index) for index in range(12)]
    for device in devices:
        device.id = f"GPU-{(device.index * 7) % 12:x}"
    cpu = cluster_pb2.Device(id="CPU-1", alias="n1:cpu", node="n1", kind=cluster_pb2.DEVICE_KIND_CPU)
    script.state(0, *devices, cpu, everything=True)
    schema = script.schema(0, [*(device.id for device in devices), cpu.id])
    for second in range(20):
        script.tick(second, schema, [IDLE] * 13)
    found = reading._analysed(script.write())
    assert [d.device for d in found.devices] == [*(f"n1:gpu{index}" for index in range(12)), "n1:cpu"]
    assert found.findings[0].subject == "gpu0-gpu11 of n1"
    changes = reading._compared(script.directory, script.directory, (), 0.95, 0).changes
    assert list(dict.fromkeys(c.subject for c in changes)) == [d.device for d in found.devices]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["n1:gpu0"], "n1:gpu0"),
        (["n1:gpu0", "n1:gpu1"], "gpu0, gpu1 of n1"),
        (["n1:gpu0", "n1:gpu2", "n1:gpu3", "n1:gpu4"], "gpu0, gpu2-gpu4 of n1"),
        (["n1:gpu9", "n1:gpu10", "n1:gpu11", "n1:cpu"], "gpu9-gpu11, cpu of n1"),
        (["GPU-7f", "GPU-70", "GPU-71"], "GPU-7f, GPU-70, GPU-71"),
        (["n1:gpu0", "n1:gpu00"], "gpu0, gpu00 of n1"),
    ],
)
def test_devices_are_named_in_few_words(names: list[str], told: str) -> None:
    assert tables.several(names) == told


def test_a_node_on_which_next_to_nothing_ran_is_not_uneven(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.state(0, gpu(0), gpu(1), everything=True)
    schema = script.schema(0, [G0, G1])
    for second in range(100):
        script.tick(second, schema, [{**IDLE, "gpu_util_percent": 2.0}, IDLE])
    found = analysed(script)
    assert found.nodes[0].imbalance == 1 and "uneven" not in texts(found)


def test_loads_head_room_errors_and_failures_are_found(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.state(0, gpu(0), gpu(1), everything=True)
    schema = script.schema(0, [G0, G1])
    full: Values = {**BUSY, "memory_used_bytes": 79 << 30, "sm_active_percent": 20.0}
    for second in range(100):
        script.tick(second, schema, [{**full, "ecc_uncorrected_volatile": 3 if second < 50 else 5}, IDLE])
    for number in (1, 2):
        event = mark(number, 5 * number, "GPU-n1-1 does not answer")
        event.type, event.subject, event.severity = "device.lost", G1, common_pb2.SEVERITY_ERROR
        script.state(5 * number, event)
    for number, text in ((3, event.message), (4, "n1:gpu0: power_mw 700000, above 600000")):
        alert = mark(number, 12, text)
        alert.type, alert.subject, alert.severity = "alert.firing", G1, common_pb2.SEVERITY_ERROR
        script.state(12, alert)
    script.state(10, service("s", "loading", G0))
    script.state(30, service("s", "ready", G0))
    script.state(60, task(1, "running", device=G0, ready=59, started=60))
    script.state(70, task(1, "failed", device=G0, ready=59, started=60, finished=70))
    found = analysed(script)
    told = texts(found)
    assert "n1:gpu0 loaded models 20 % of the time: 1 load (m 1)" in told
    assert "n1:gpu0 had 1.0G of memory free when it was fullest (1 %)" in told
    assert "n1:gpu0 had 2 uncorrected memory errors, the first at" in told
    assert "n1:gpu0 was busy 80 % on average, but its SMs were active 20 %" in told
    assert "device.lost: GPU-n1-1 does not answer (2 times)" in told
    assert told.count("does not answer") == 1 and "alert.firing: n1:gpu0: power_mw 700000" in told
    assert "1 of 1 attempts with m did not end well" in told
    assert "n1 is uneven by 100 %: n1:gpu0 was at 80 % on average, n1:gpu1 at 0 %" in told
    assert found.findings[0].severity is Severity.ERROR
    (model,) = found.models
    assert (model.tasks, model.failed, model.loads, model.load_mean_s) == (1, 1, 1, 20.0)


def test_models_that_come_and_go_where_more_of_them_would_fit_are_told(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.state(0, gpu(0), everything=True)
    schema = script.schema(0, [G0])
    for second in range(100):
        script.tick(second, schema, [{**BUSY, "memory_used_bytes": 35 << 30}])
    for start, model in ((10, "chat"), (40, "code"), (70, "chat")):
        script.state(start, service("s", "loading", G0, model))
        script.state(start + 10, service("s", "ready", G0, model))
        script.state(start + 29, deleted=[service("s", "ready", G0, model)])
    assert (
        "n1:gpu0 loaded models 30 % of the time: 3 loads (chat 2, code 1); never less than 45G of memory free"
    ) in texts(analysed(script))


def test_what_happened_is_walked_once_and_in_order(tmp_path: Path) -> None:
    script = Script(tmp_path)
    first = script.schema(0, [G0])
    script.tick(0, first, [BUSY])
    script.state(0, gpu(0), service("s", "ready", G0), mark(1, 0.5, "before"), everything=True)
    script.state(5, task(1, "running", device=G0, ready=2, started=5), mark(2, 5, "middle"))
    script.state(8, task(1, "backoff", device=G0))  # the first attempt failed
    script.state(9, task(1, "running", device=G0, ready=9, started=9))
    script.state(12, task(1, "done", device=G0, ready=9, started=9, finished=12, tokens=64))
    script.state(60, gpu(0), service("s", "ready", G0), everything=True)  # a seek point
    script.state(70, deleted=[service("s", "ready", G0)])
    script.state(80, task(2, "running", device=G0, ready=75, started=80))
    script.tick(90, first, [BUSY])
    with script.open() as recording:
        found = history.read(recording)
    runs = [(s.name, s.phase, s.seconds, s.wait_s, s.tokens, s.is_open) for s in found.of(SpanKind.TASK)]
    assert runs == [
        ("1", "backoff", 3.0, 3.0, None, False),
        ("1", "done", 3.0, 0.0, 64, False),
        ("2", "running", 10.0, 5.0, None, True),
    ]
    (served,) = found.of(SpanKind.SERVICE)
    assert (served.phase, served.seconds, served.is_open) == (ServicePhase.READY.value, 70.0, False)
    assert [m.message for m in found.marks] == ["before", "middle"]
    assert found.label(G0) == "n1:gpu0" and found.label("GPU-of-no-one") == "GPU-of-no-one"


def test_after_a_gap_the_next_list_says_what_is_gone(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.state(0, gpu(0), service("s", "ready", G0), task(1, "ready"), lane(G0, 1), everything=True)
    script.gap(20, "cannot write: No space left on device")
    script.state(30, gpu(0), everything=True)
    with script.open() as recording:
        found = history.read(recording)
    (served,) = found.of(SpanKind.SERVICE)
    assert (served.seconds, served.is_open) == (30.0, False)
    assert found.waiting[G0].at(np.array([us(-1), us(1), us(31)])).tolist() == [0, 1, 0]
    assert any("No space left" in note for note in analysed(script).damage)


# What holds of any series

UTIL = st.floats(0, 100, width=32)
STEPS = st.lists(st.tuples(st.floats(0.05, 30), st.none() | UTIL), min_size=1, max_size=60)


def made(steps: list[tuple[float, float | None]], metric: str = "gpu_util_percent") -> Series:
    times = np.cumsum([round(step * 1e6) for step, _ in steps]).astype(np.int64)
    values = np.array([0.0 if value is None else value for _, value in steps], np.float32)
    return Series("n", "d", times, {metric: Column(values, np.array([value is not None for _, value in steps]))})


@given(STEPS)
def test_percentiles_are_ordered_and_shares_lie_between_0_and_1(steps: list[tuple[float, float | None]]) -> None:
    given_ = made(steps)
    weights = given_.holds_s()
    assert (weights >= 0).all() and len(weights) == len(steps)
    found = analysis.figures("gpu_util_percent", "%", given_.numbers("gpu_util_percent"), weights)
    flags, known = analysis.idle(given_)
    part = analysis.share(flags, known, weights)
    if not known.any():
        assert part is None and found.mean is found.p50 is found.max is None and found.known_share == 0
        return
    assert part is not None and 0 <= part <= 1 and 0 <= found.known_share <= 1
    assert found.min is not None and found.p50 is not None and found.p95 is not None and found.p99 is not None
    assert found.max is not None and found.mean is not None
    assert found.min <= found.p50 <= found.p95 <= found.p99 <= found.max
    assert found.min <= found.mean <= found.max


@given(st.lists(UTIL, min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_with_equal_weights_a_percentile_is_numpys(values: list[float], part: float) -> None:
    array = np.array(values, np.float64)
    assert analysis.percentile(array, np.ones(len(array)), part) == np.quantile(array, part, method="inverted_cdf")


COUNTED = st.integers(10**6, 2**62) | st.integers(2**64 - 10**7, 2**64 - 2)


@given(st.lists(st.integers(0, 700_000), min_size=3, max_size=60), COUNTED, st.integers(0, 60))
def test_energy_from_the_counter_and_from_power_agree(power: list[int], start: int, reset_at: int) -> None:
    """Power sampled each second holds until the next; the counter goes round its 64 bits, or is reset on the way."""
    held = np.array(power)
    counter = [start]
    for number, milliwatts in enumerate(power[:-1]):
        counter.append((counter[-1] + milliwatts) % (2**64 - 1))  # the last number is NA
        if number == reset_at and start < 2**63:
            counter[-1] = milliwatts  # driver loaded anew at the last sample: counted from 0 since
    always = np.ones(len(power), np.bool_)
    times = np.arange(len(power), dtype=np.int64) * 1_000_000
    wrapped = counter[0] > 2**63 > counter[-1]
    by_counter = Series("n", "d", times, {"energy_mj": Column(np.array(counter, np.uint64), always)})
    by_power = Series("n", "d", times, {"power_mw": Column(held, always)})
    joules, basis = analysis.energy(by_counter, by_counter.holds_s())
    others, other_basis = analysis.energy(by_power, by_power.holds_s())
    assert (basis, other_basis) == ("counter", "power") and joules is not None and others is not None
    # The last sample's power holds beyond the last count; going round passes the one number that means NA.
    assert joules == pytest.approx(others - power[-1] / 1e3, abs=0.002 if wrapped else 1e-6)


def test_a_counter_that_was_na_for_a_while_counted_on() -> None:
    values, known = np.array([100, 0, 0, 500, 40], np.uint64), np.array([True, False, False, True, True])
    grown, told = analysis.increments(Column(values, known))
    assert grown.tolist() == [0, 0, 400, 40] and told.tolist() == [False, False, True, True]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=16))
def test_imbalance_lies_between_0_and_1(loads: list[float]) -> None:
    found = analysis.imbalance(loads)
    assert (found is None) == (max(loads) == 0)
    assert found is None or 0 <= found <= 1


def test_imbalance_is_0_for_equals_and_1_for_one_alone() -> None:
    assert analysis.imbalance([50.0] * 4) == 0 and analysis.imbalance([80.0, 0.0, 0.0]) == pytest.approx(1)
    assert analysis.imbalance([50.0]) is None and analysis.imbalance([0.0, 0.0]) is None


# Real recordings, by name and by path


async def test_a_real_session_is_analysed_by_name_by_path_and_from_afar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flow = tmp_path / "flow.yaml"
    lines = [f"  - {{id: a{i}, type: inference, model: sim, prompt: hi, max_tokens: 16}}" for i in range(6)]
    flow.write_text("name: flow\nactions:\n" + "\n".join(lines) + "\n")
    async with cluster(tmp_path) as running, running.agent("n1", simulate="2xH100"):
        swarm = running.swarm
        await swarm.model.download("sim", source="simulated:1GiB", wait=True, timeout=60)
        async with swarm.mirror() as mirror:
            await seen(mirror, lambda: len(mirror.samples), lambda count: count == 3)
        await swarm.profiler.start(name="run", interval=0.2)
        await swarm.profiler.mark("begin")
        (asked,) = await swarm.queue.submit([flow])
        await swarm.wait(workflow_done, asked, timeout=60)
        async with swarm.mirror((Session,), samples=False) as mirror:
            await seen(mirror, lambda: mirror.rows(Session).get("run"), lambda s: s is not None and s.ticks >= 10)
        stopped = await swarm.wait(session_sealed, await swarm.profiler.stop("run"), timeout=60)
        named = await swarm.profiler.analyze("run")
        by_path = await swarm.profiler.analyze(stopped.path)
        with pytest.raises(NotFoundError, match="Did you mean run"):
            await swarm.profiler.analyze("runn")
        with pytest.raises(InvalidError, match="Did you mean power_mw"):
            await swarm.profiler.plot("run", metric=["powr_mw"], term=True)
        served = swarm.using()
        served.in_host = True  # as the host's own REST face has it
        with pytest.raises(InvalidError, match="session name"):
            await served.profiler.analyze(stopped.path)
    assert named == by_path and isinstance(asked, Workflow)
    assert named.ticks == stopped.ticks and [n.node for n in named.nodes] == ["n1"]
    (model,) = named.models
    assert (model.model, model.tasks, model.failed, model.tokens) == ("sim", 6, 0, 6 * 16)
    assert {d.kind for d in named.devices} == {"SIM", "CPU"}
    gpus = [d for d in named.devices if d.kind == "SIM"]
    assert sum(d.loads for d in gpus) == model.loads >= 1
    assert all(d.energy_basis == "counter" and d.energy_j for d in gpus)
    assert all(len(line) <= 80 for line in named.lines())
    assert re.search(r"n1:gpu0 +SIM +\d+%", "\n".join(named.lines()))
    # Without any host: in a process of its own.
    env = {"PATH": str(BIN), "GSWARM_STATE_DIR": str(tmp_path / "nothing"), "HOME": str(tmp_path)}

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run([BIN / "gswarm", *words], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def checked() -> None:
        offline = json.loads(run("profiler", "analyze", stopped.path, "-o", "json"))
        assert offline["ticks"] == stopped.ticks and len(offline["devices"]) == 3
        assert "gpu0, gpu1 of n1 SIM" in run("profiler", "compare", stopped.path, stopped.path)
        assert "n1:gpu0" in run("profiler", "plot", stopped.path, "--term")
        assert offline == json.loads(run("--from", stopped.path, "profiler", "analyze", "run", "-o", "json"))
        assert "is no recording" in run("profiler", "analyze", "./nowhere", code=4)
        assert "no host" in run("profiler", "analyze", "run", code=3).lower()

    await asyncio.to_thread(checked)


async def test_a_name_means_the_hosts_recording_unless_the_copy_here_is_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (away := tmp_path / "away").mkdir()
    monkeypatch.chdir(away)
    told: list[str] = []

    def offline(state: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(BIN), "GSWARM_STATE_DIR": str(tmp_path / state), "HOME": str(tmp_path)}
        words = [str(BIN / "gswarm"), "profiler", "analyze", "run", "-o", "json"]
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)

    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    async with cluster(state_dir()) as running, running.agent("n1"):
        swarm = running.swarm
        swarm.tell = told.append

        await swarm.profiler.start(name="run", interval=0.1)
        await session(running, "run", lambda s: s.ticks > 3)
        await swarm.profiler.pull("run")
        early = (await swarm.profiler.analyze("./run")).ticks
        assert not told, "a path is what it says"
        await session(running, "run", lambda s: s.ticks > early + 3)
        assert (await swarm.profiler.analyze("run")).ticks > early
        assert "reading run from the host: the copy here does not say that the session had stopped" in told.pop()
        stopped = await sealed(running, "run")
        assert (await swarm.profiler.analyze("run")).ticks == stopped.ticks and "from the host" in told.pop()
        (away / "run").rename(away / "early")
        await swarm.profiler.pull("run")
        assert (await swarm.profiler.analyze("run")).ticks == stopped.ticks
        assert told.pop() == "reading ./run; the host has the same"
        await swarm.profiler.delete("run")
        assert (await swarm.profiler.analyze("run")).ticks == stopped.ticks
        assert told.pop() == "reading ./run; the host has no session of that name"
        await swarm.profiler.start(name="run", interval=0.1)
        await session(running, "run", lambda s: s.ticks > 0)
        assert stopped.stopped_at and (await swarm.profiler.analyze("run")).start > stopped.stopped_at
        assert "the copy here is of another session of that name" in told.pop()
    alone = await asyncio.to_thread(offline, "nothing")
    assert json.loads(alone.stdout)["ticks"] == stopped.ticks
    assert alone.stderr == "gswarm: reading ./run; no host was asked for a newer one\n"
    (away / "run").rename(away / "whole")
    assert (await asyncio.to_thread(offline, "nothing")).returncode == 3
    kept = await asyncio.to_thread(offline, "state")
    assert (
        kept.stderr == f"gswarm: reading {state_dir()}/recordings/run; no host was asked for a newer one\n"
        and kept.returncode == 0
    )


@pytest.mark.parametrize("tls", [False, True])
def test_a_host_that_is_named_and_does_not_answer_is_not_taken_for_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tls: bool
) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("GSWARM_HOST", raising=False)
    monkeypatch.setenv("GSWARM_TOKEN", str(net.Token.new("viewer", "0" * 64 if tls else "")))
    monkeypatch.chdir(tmp_path)
    script = Script(state_dir() / "recordings" / "slow", name="slow")
    script.state(0, gpu(0), everything=True)
    script.state(9, service("s", "ready", G0))
    script.write()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        named = ["--host", f"127.0.0.1:{closed.getsockname()[1]}"]
        assert cli.run(["profiler", "analyze", "slow"]) == 0, "none is named and none runs"
        assert "no host was asked" in capsys.readouterr().err
        assert cli.run([*named, "profiler", "analyze", "slow"]) == 3
        said = capsys.readouterr()
        assert "no gswarm host answers at 127.0.0.1" in said.err and not said.out
        shutil.copytree(state_dir() / "recordings" / "slow", tmp_path / "slow")
        assert cli.run([*named, "profiler", "analyze", "slow"]) == 0, "a copy where we are will do"
        assert "reading ./slow; " in capsys.readouterr().err
        assert cli.run([*named, "profiler", "compare", "slow", "./slow"]) == 0


async def test_names_and_directories_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    script = Script(tmp_path / "here", name="other")
    script.state(0, everything=True)
    script.write()
    (tmp_path / "empty").mkdir()
    assert {host_for({"name": name}) for name in ("./here", "/y", "a/b", ".")} == {HostNeed.NONE}
    assert host_for({"a": "./x", "b": "here"}) is host_for({"name": "here"}) is HostNeed.IF_THERE
    assert host_for({"name": "run-7"}) is host_for({"name": "empty"}) is HostNeed.YES
    assert host_for({"a": "here", "b": "run-7"}) is HostNeed.YES
    shutil.copytree(tmp_path / "here", state_dir() / "recordings" / "kept")
    assert host_for({"name": "kept"}) is host_for({"a": "here", "b": "kept"}) is HostNeed.IF_NAMED
    async with located(None, "here") as directory:
        assert directory == Path("here")
    with Recording.open(tmp_path / "here") as recording:
        assert recording.name == "other" and recording.end >= at(0)
        async with located(recording, "other") as same:
            assert same == recording.directory
