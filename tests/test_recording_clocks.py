"""One time axis: clocks that are off, that jump, that are set back, and networks that only look like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gswarm.cluster.types import Node
from gswarm.profiler.clocks import offsets
from gswarm.profiler.recorder import HostClock
from gswarm.profiler.recording import Recording
from gswarm.profiler.seal import seal
from gswarm.v1 import cluster_pb2
from tests.support.recordings import START_US, Journal, schema, shown, tick


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
