"""Clocks of nodes: the estimate holds the truth within its error, whatever the network does; a shifted agent is found out."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm.cluster.types import Node
from gswarm.host.clocks import SLACK_US, Clock, Offset
from gswarm.host.membership import is_news
from gswarm.v1 import cluster_pb2
from tests.support.cluster import cluster, seen

DELAYS = st.integers(0, 400_000)
BEGIN = 1_700_000_000_000_000


def exchange(clock: Clock, at_us: int, offset_us: int, there_us: int, held_us: int, back_us: int) -> int:
    """One exchange with a node whose clock is `offset_us` ahead; when it is over, by the host's clock."""
    answered = at_us + there_us + held_us
    clock.exchange(at_us, held_us, answered + offset_us, answered + back_us)
    return answered + back_us


@given(
    st.integers(-(10**10), 10**10), st.lists(st.tuples(DELAYS, st.integers(0, 10**7), DELAYS), min_size=1, max_size=40)
)
def test_the_truth_is_within_the_error_and_the_quickest_exchange_decides(
    offset_us: int, exchanges: list[tuple[int, int, int]]
) -> None:
    clock, now = Clock(), BEGIN
    for there, held, back in exchanges:
        now = exchange(clock, now, offset_us, there, held, back)
    found = clock.offset
    assert found is not None and abs(found.us - offset_us) <= found.error_us
    assert found.error_us <= min(there + back for there, _, back in exchanges[-16:]) // 2 + 1


@given(st.integers(2 * SLACK_US + 10_000, 10**12), st.booleans())
def test_a_clock_that_is_set_is_believed_at_once(jump_us: int, forward: bool) -> None:
    clock, now = Clock(), BEGIN
    for _ in range(5):
        now = exchange(clock, now, 0, 1000, 1000, 1000)
    offset = jump_us if forward else -jump_us
    exchange(clock, now, offset, 2000, 1000, 2000)
    assert clock.offset is not None and abs(clock.offset.us - offset) <= clock.offset.error_us


@given(*(st.integers(-(2**62), 2**62) for _ in range(4)))
def test_nonsense_is_left_out(sent: int, held: int, answered: int, heard: int) -> None:
    clock = Clock()
    clock.exchange(sent, held, answered, heard)
    if held < 0 or heard - sent - held < 0 or sent <= 0 or answered <= 0:
        assert clock.offset is None


def test_what_is_news_of_an_offset() -> None:
    node = cluster_pb2.Node(name="n1")
    assert is_news(node, Offset(0, 100))
    node.clock_offset_us, node.clock_error_us = 1000, 200
    assert not is_news(node, Offset(1100, 150)) and not is_news(node, Offset(1000, 1)), "good enough already"
    assert is_news(node, Offset(1400, 150))
    node.clock_error_us = 40_000
    assert is_news(node, Offset(1000, 9_000)) and not is_news(node, Offset(1000, 11_000))


@pytest.mark.parametrize("ahead_s", [0, 3, -70])
async def test_a_node_says_how_far_its_clock_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    shifted = SimpleNamespace(
        time_ns=lambda: time.time_ns() + ahead_s * 10**9, monotonic=time.monotonic, monotonic_ns=time.monotonic_ns
    )
    monkeypatch.setattr("gswarm.client.link.time", shifted)
    async with (
        cluster(tmp_path) as running,
        running.agent("n1", "1xH100"),
        running.swarm.mirror((Node,), samples=False) as mirror,
    ):
        read = lambda: mirror.rows(Node).get("n1", Node())  # noqa: E731
        node = await seen(mirror, read, lambda n: n.clock_offset_us is not None)
    assert node.clock_offset_us is not None and abs(node.clock_offset_us - ahead_s * 10**6) <= node.clock_error_us
