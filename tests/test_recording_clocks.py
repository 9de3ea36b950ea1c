"""One time axis: clocks that are off, that jump, that are set back, and networks that only look like it."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm.cluster.types import Node
from gswarm.host import writer
from gswarm.profiler import history, sessions, worker
from gswarm.profiler import manifest as manifests
from gswarm.profiler.clocks import NOT_RUNNING, HostClock, offsets
from gswarm.profiler.history import SpanKind
from gswarm.profiler.recording import Recording
from gswarm.profiler.seal import seal
from gswarm.v1 import cluster_pb2
from tests.support.cluster import cluster
from tests.support.recordings import START_US, Journal, schema, shown, tick
from tests.support.scripted import Script, at, gpu, mark, task, us
from tests.support.sessions import sealed, session


def arrivals(count: int, late_us: int = 3_000) -> tuple[list[int], np.ndarray, np.ndarray]:
    host = START_US + np.arange(count, dtype=np.int64) * 1_000_000
    return list(range(1, count + 1)), host.copy(), host + late_us


def test_a_clock_that_agrees_is_left_alone() -> None:
    seqs, node, arrived = arrivals(300)
    found, changes = offsets(seqs, node, arrived)
    assert not found.any() and changes == ((int(arrived[0]), 0),)


@given(
    st.integers(-(10**10), 10**10).filter(lambda n: abs(n) > 10**6),
    st.lists(st.integers(0, 150_000), min_size=40, max_size=90),
)
def test_a_clock_that_is_off_is_put_right(off_us: int, delays: list[int]) -> None:
    seqs, host, _ = arrivals(len(delays))
    found, _ = offsets(seqs, host + off_us, host + np.array(delays))
    assert (np.abs(host + off_us + found - host) <= max(delays)).all()


@given(st.integers(5, 60), st.integers(-(10**9), 10**9).filter(lambda n: abs(n) > 5 * 10**6))
def test_a_clock_that_jumps_leaves_the_time_axis_whole(at: int, jump_us: int) -> None:
    seqs, host, arrived = arrivals(70)
    node = host.copy()
    node[at:] += jump_us
    found, changes = offsets(seqs, node, arrived)
    assert (np.abs(node + found - host) < 250_000).all() and len(changes) == 2


def test_what_a_cut_held_back_keeps_its_time() -> None:
    """Ten minutes come at once, the newest first, while live ones go on."""
    seqs, host, arrived = arrivals(700)
    order = [*range(50), 650]
    held, live = list(range(649, 49, -1)), list(range(651, 700))
    while held or live:
        order += held[:12] + live[:1]
        held, live = held[12:], live[1:]
    came = np.array(arrived)[order].copy()
    came[50:] = np.maximum.accumulate(came[50:])
    for off_us in (0, 7_200_000_000):
        found, _ = offsets([seqs[i] for i in order], host[order] - off_us, came)
        assert (np.abs(host[order] - off_us + found - host[order]) < 250_000).all()


def test_a_network_that_stands_still_is_no_clock_that_jumps() -> None:
    """Ticks of ten seconds come together: late, each less than the one before; later one alone is late."""
    seqs, host, arrived = arrivals(60)
    arrived[20:30] = arrived[30]
    arrived[45] += 5_000_000  # and one alone, on a detour
    found, changes = offsets(seqs, host, arrived)
    assert not found.any() and len(changes) == 1


def test_nodes_whose_clocks_are_off_share_one_axis(tmp_path: Path) -> None:
    """One is an hour ahead, one is set back by five minutes half way."""
    journal = Journal(tmp_path / "run")
    right, ahead, jumps = (schema(node, [f"{node}-gpu"]) for node in ("right", "ahead", "jumps"))
    journal.list()
    for layout in (right, ahead, jumps):
        journal.schema(layout)
    for second in range(100):
        sampled = START_US + second * 1_000_000
        journal.now_us = sampled + 4_000
        for layout, off in ((right, 0), (ahead, 3_600_000_000), (jumps, 0 if second < 50 else -300_000_000)):
            journal.tick(tick(layout, sampled + off, [{"power_mw": second}], second + 1))
    directory = journal.write()
    for _ in range(2):
        with Recording.open(directory) as recording:
            for one in recording.series(["power_mw"]):
                assert len(one.times_us) == 100, one.device
                late = one.times_us - START_US - np.arange(100) * 1_000_000
                assert (np.abs(late) <= 5_000).all(), one.device
                assert np.array_equal(one.numbers("power_mw"), np.arange(100)), one.device
            assert shown(recording, START_US + 70_500_000)[2] == {
                f"{node}-gpu": {"power_mw": 70} for node in ("right", "ahead", "jumps")
            }
        seal(directory)


def test_a_host_clock_set_back_changes_no_order(tmp_path: Path) -> None:
    """As in recordings of format 1, whose records carry whatever the clock said."""
    journal = Journal(tmp_path / "run")
    journal.list()
    for number in range(10):
        journal.now_us = START_US + (number if number < 5 else number - 4) * 1_000_000
        journal.change(cluster_pb2.Node(name="n", cpu_count=number))
    directory = journal.write()
    for _ in range(2):
        with Recording.open(directory) as recording:
            assert recording.rows(Node)["n"].cpu_count == 9
            assert [
                w.objects[0].node.cpu_count
                for w in (cluster_pb2.WatchResponse.FromString(i.payload) for i in recording.records())
                if not w.list
            ] == list(range(10))
        seal(directory)


def test_a_recorder_goes_on_after_what_is_written(tmp_path: Path) -> None:
    clock = HostClock()
    before = clock.now_us()
    clock.after(before + 3_600_000_000)
    assert clock.now_us() >= before + 3_600_000_000
    clock.after(before)
    assert clock.now_us() >= before + 3_600_000_000


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_what_happens_keeps_its_time_when_the_hosts_clock_is_set(tmp_path: Path, jump_s: float) -> None:
    script = Script(tmp_path / "run")
    script.state(0, gpu(0), mark(1, -50, "long ago"), everything=True)
    waits = {"device": "GPU-n1-0", "ready": 8}
    script.state(5, mark(2, 5, "before"))
    script.state(8, task(1, "ready", ready=8))
    script.ahead_s = jump_s
    script.state(11, mark(3, 11 + jump_s, "after"))
    script.state(12, task(1, "running", **waits, started=12 + jump_s))  # type: ignore[arg-type]
    script.state(20, task(1, "done", **waits, started=12 + jump_s, finished=20 + jump_s))  # type: ignore[arg-type]
    script.state(21, mark(4, 21 + jump_s, "end"))
    directory = script.write()
    for _ in range(2):
        with Recording.open(directory) as recording:
            past = history.read(recording)
            assert [(m.message, m.time) for m in past.marks] == [("before", at(5)), ("after", at(11)), ("end", at(21))]
            (ran,) = past.of(SpanKind.TASK)
            assert (ran.start_us, ran.end_us, ran.wait_s) == (us(12), us(20), 4.0)
        manifests.adopt(directory)
        seal(directory)


@pytest.mark.parametrize("jump_s", [-3600, 3600])
async def test_a_session_goes_on_when_the_hosts_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    """The clock that host and agent ask is set by an hour while they run; gRPC's deadlines keep the machine's."""
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    ahead_s, time_ns, seconds = [0], time.time_ns, time.time

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=ahead_s[0])

    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + ahead_s[0] * 1_000_000_000)
    ticking = SimpleNamespace(
        time=lambda: seconds() + ahead_s[0], time_ns=lambda: time.time_ns(), monotonic=time.monotonic
    )
    monkeypatch.setattr(worker, "time", ticking)
    for module in (writer, sessions):
        monkeypatch.setattr(module, "datetime", Clock)
    async with cluster(tmp_path) as running, running.agent("n1"):
        await running.swarm.profiler.start(name="set", interval=0.1)
        await running.swarm.profiler.mark("before")
        told = await session(running, "set", lambda s: s.ticks >= 10)
        ahead_s[0] = jump_s
        await running.swarm.profiler.mark("after")
        await session(running, "set", lambda s: s.ticks >= told.ticks + 20)
        stopped = await sealed(running, "set")
        found = await running.swarm.profiler.analyze("set")
        with Recording.open(Path(stopped.path)) as recording:
            past = history.read(recording)
            moments = [mark.time for mark in past.marks if mark.time is not None]
            (gpu0,) = [one for one in recording.series(["power_mw"]) if not past.is_cpu(one.device)]
    assert [mark.message for mark in past.marks] == ["before", "after"]
    assert found.start <= moments[0] < moments[1] <= found.end
    assert (found.end - found.start).total_seconds() < 600, "no hour is made or lost"
    assert len(gpu0.times_us) == found.ticks >= 30 and (np.diff(gpu0.times_us) < 10_000_000).all()
    assert all(device.gaps_s < 10 for device in found.devices)


@pytest.mark.parametrize(("gap", "ahead_s"), [(NOT_RUNNING.decode(), 0.0), ("cannot write", 3600.0)])
def test_a_host_that_is_started_again_has_another_clock(tmp_path: Path, gap: str, ahead_s: float) -> None:
    """After a full disk it is the same host, and its clock as far off as before."""
    script = Script(tmp_path / "run")
    script.state(0, gpu(0), everything=True)
    script.ahead_s = 3600.0
    script.state(5, mark(1, 3605, "before"))
    script.gap(10, gap)
    script.ahead_s = ahead_s
    ran = task(1, "running", device="GPU-n1-0", ready=18 + ahead_s, started=19 + ahead_s)
    script.state(20, gpu(0), ran, mark(1, 3605, "before"), mark(2, 19 + ahead_s, "after"), everything=True)
    script.state(30, mark(3, 30 + ahead_s, "end"))
    directory = script.write()
    for _ in range(2):
        with Recording.open(directory) as recording:
            past = history.read(recording)
            assert [(m.message, m.time) for m in past.marks] == [("before", at(5)), ("after", at(19)), ("end", at(30))]
            (span,) = past.of(SpanKind.TASK)
            assert (span.start_us, span.wait_s) == (us(19), 1.0)
        manifests.adopt(directory)
        seal(directory)
