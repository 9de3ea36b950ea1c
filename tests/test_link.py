"""The agent's side of the stream: what it keeps, in which order it sends, and what it does when the host goes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gswarm.client.outbox import Outbox
from gswarm.client.ring import Ring
from gswarm.v1 import agent_pb2, profiler_pb2


def tick(seq: int, size: int = 100) -> profiler_pb2.SampleTick:
    return profiler_pb2.SampleTick(seq=seq, time_unix_us=seq, f32=bytes(size))


def event(text: str) -> agent_pb2.Report:
    return agent_pb2.Report(event=agent_pb2.NodeEvent(type="test", message=text))


class Written:
    """Counts commits, and lets a test wait for one."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def __call__(self) -> None:
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, outbox: Outbox, seq: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: outbox.last_seq() >= seq, timeout=10)


def test_reports_keep_order_and_numbers_survive_deletion_and_restart(tmp_path: Path) -> None:
    written = Written()
    outbox = Outbox(tmp_path / "outbox.db", written)
    for number in range(600):
        outbox.put(event(str(number)))
    written.wait(outbox, 600)
    got: list[agent_pb2.Report] = []
    while more := outbox.after(got[-1].seq if got else 0):
        got += more
    assert [(r.seq, r.event.message) for r in got] == [(n + 1, str(n)) for n in range(600)]
    outbox.delete(600)
    identity = outbox.id
    outbox.close()

    again = Outbox(tmp_path / "outbox.db", written)
    assert again.id == identity
    again.put(event("later"))
    written.wait(again, 601)
    assert [r.seq for r in again.after(0)] == [601], "a number used once must never name another report"
    again.close()


def test_reports_put_before_close_are_on_disk(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", lambda: None)
    for number in range(50):
        outbox.put(event(str(number)))
    outbox.close()
    again = Outbox(tmp_path / "outbox.db", lambda: None)
    assert [r.event.message for r in again.after(0)] == [str(n) for n in range(50)]
    again.close()


def test_a_report_that_cannot_be_written_waits_and_nothing_is_lost(tmp_path: Path) -> None:
    written = Written()
    outbox = Outbox(tmp_path / "outbox.db", written)
    outbox.put(event("first"))
    written.wait(outbox, 1)
    blocker = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    outbox._db.execute("PRAGMA busy_timeout=0")
    blocker.execute("BEGIN IMMEDIATE")
    outbox.put(event("second"))
    outbox.put(event("third"))
    blocker.execute("COMMIT")
    blocker.close()
    written.wait(outbox, 3)
    assert [r.event.message for r in outbox.after(0)] == ["first", "second", "third"]
    outbox.close()


def test_after_a_cut_the_newest_tick_goes_first() -> None:
    ring = Ring()
    for seq in (1, 2, 3):
        ring.add(tick(seq))
    sent = [t.seq for t in iter(ring.next, None)]
    assert sent == [3, 2, 1]
    ring.reconnected()
    ring.add(tick(4))
    assert [t.seq for t in iter(ring.next, None)] == [4, 3, 2, 1]
    ring.acknowledge(3)
    ring.reconnected()
    assert [t.seq for t in iter(ring.next, None)] == [2, 1]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(200, 2_000))
def test_a_full_ring_marks_exactly_what_it_dropped(sizes: list[int], limit: int) -> None:
    ring = Ring(limit)
    for seq, size in enumerate(sizes, start=1):
        ring.add(tick(seq, size))
    left = sorted(iter(ring.next, None), key=lambda t: t.seq)
    assert left[-1].seq == len(sizes), "the newest is never dropped"
    assert sum(t.gap for t in left) == len(sizes) - len(left)
    before = 0
    for one in left:
        assert one.seq - before - 1 == one.gap, "each gap is told by the tick that follows it"
        before = one.seq


class RingModel(RuleBasedStateMachine):
    """Whatever happens to the connection, each tick reaches the host at least once or is counted in a gap."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(limit=1_500)
        self.made = 0
        self.wire: list[profiler_pb2.SampleTick] = []
        self.host: dict[int, int] = {}

    @rule(size=st.integers(1, 500))
    def sample(self, size: int) -> None:
        self.made += 1
        self.ring.add(tick(self.made, size))

    @rule()
    def send(self) -> None:
        if (one := self.ring.next()) is not None:
            copy = profiler_pb2.SampleTick()
            copy.CopyFrom(one)
            self.wire.append(copy)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def acknowledged(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.wire)))
        arrived, self.wire = self.wire[:count], self.wire[count:]
        for one in arrived:
            self.host[one.seq] = max(one.gap, self.host.get(one.seq, 0))
        self.ring.acknowledge(arrived[-1].seq)

    @rule()
    def cut(self) -> None:
        self.wire.clear()
        self.ring.reconnected()

    @invariant()
    def bounded(self) -> None:
        assert self.ring.size <= 1_500 or len(self.ring) == 1

    def teardown(self) -> None:
        self.cut()
        while (one := self.ring.next()) is not None:
            self.host[one.seq] = max(one.gap, self.host.get(one.seq, 0))
        if self.made:
            assert self.made in self.host
        missing = self.made - len(self.host)
        assert missing <= sum(self.host.values()), "a loss that no tick tells of"


RingModel.TestCase.settings = settings(max_examples=60, deadline=None)
test_ring = RingModel.TestCase


CLOSING = """
import pathlib, sys, tempfile, threading
from gswarm.client.outbox import Outbox
from gswarm.v1 import agent_pb2
for _ in range(60):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as directory:
        outbox, stop = Outbox(pathlib.Path(directory) / "outbox.db", lambda: None), threading.Event()
        for _ in range(100):
            outbox.put(agent_pb2.Report())
        def read():
            try:
                while not stop.is_set():
                    outbox.after(0)
            except Exception:
                pass  # it is closed: an error, not a crash
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads: thread.start()
        outbox.close()
        stop.set()
        for thread in threads: thread.join()
"""


def test_closing_while_others_read_does_not_crash_the_interpreter(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CLOSING, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 0
