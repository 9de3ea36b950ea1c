"""Sessions: what is recorded, when it ends by itself, what pauses it, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from gswarm.cluster.types import Device, Event
from gswarm.errors import ExhaustedError, InvalidError, NotFoundError, RefusedError
from gswarm.host import store
from gswarm.host.transaction import Transaction
from gswarm.profiler import history, recorder
from gswarm.profiler import manifest as manifests
from gswarm.profiler.journal import Record, Writer, scan
from gswarm.profiler.recorder import Recorder
from gswarm.profiler.recording import Recording
from gswarm.profiler.simulated import SimulatedDevice
from gswarm.profiler.types import Session, SessionPhase
from gswarm.profiler.worker import ProfilerWorker
from gswarm.v1 import cluster_pb2, queue_pb2
from tests.support.cluster import Cluster, cluster
from tests.support.sessions import sealed, session, until


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as found:
        yield found


async def with_a_large_list(running: Cluster) -> None:
    """Objects that are on no disk, so that a journal is larger than all that the host itself writes meanwhile."""

    def operation(tx: Transaction) -> None:
        for number in range(3000):
            tx.put(cluster_pb2.Node(name=f"far{number}", detail="x" * 400))

    await running.context.store.apply(operation, actor="test", durable=False)


async def test_only_the_metrics_asked_for_are_recorded(running: Cluster) -> None:
    async with running.agent("n1", "2xH100"):
        await running.swarm.profiler.start(
            name="some", interval=0.1, metrics=["power_mw,memory_used_bytes", "fan_percent"]
        )
        await running.swarm.profiler.start(name="all", interval=0.1)
        await session(running, "some", lambda s: s.ticks > 5)
        await session(running, "all", lambda s: s.ticks > 5)
        some, every = await sealed(running, "some"), await sealed(running, "all")
    assert some.metrics == ("fan_percent", "memory_used_bytes", "power_mw")
    with Recording.open(Path(some.path)) as one, Recording.open(Path(every.path)) as other:
        assert set(one.metrics) <= set(some.metrics) and "power_mw" in one.metrics
        assert len(other.metrics) > len(one.metrics)
        mine, theirs = (next(s for s in found.series(["power_mw"]) if s.device == "SIM-n1-0") for found in (one, other))
        assert set(mine.times_us) & set(theirs.times_us) and set(mine.numbers("power_mw")) == {70_000.0}
        one.seek(one.end)
        reasons = one._samples().reasons.get("SIM-n1-0", {})
        assert "load_1m" not in reasons


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"name": "../etc"}, InvalidError, "session name"),
        ({"name": ""}, InvalidError, "empty"),
        ({"name": "x", "metrics": ["power_w"]}, NotFoundError, "power_mw"),
        ({"name": "x", "metrics": [","]}, InvalidError, "no metric"),
        ({"name": "x", "nodes": ["nowhere"]}, NotFoundError, "no node nowhere"),
        ({"name": "x", "interval": 0.01}, InvalidError, "0.1 to 60"),
        ({"name": "x", "interval": -1}, InvalidError, "0.1 to 60"),
        ({"name": "x", "adaptive": True, "slowest": 61}, InvalidError, "up to 60 s"),
        ({"name": "x", "adaptive": True, "interval": 2, "slowest": 2}, InvalidError, "ver its interval"),
        ({"name": "x", "adaptive": True, "slowest": 0}, InvalidError, "p to 60"),
        ({"name": "x", "slowest": 5}, InvalidError, "--adaptive"),
        ({"name": "x", "tag": ["=v"]}, InvalidError, "key=value"),
        ({"name": "x", "tag": ["k"]}, InvalidError, "key=value"),
        ({"name": "x", "tag": ["k=a\nb"]}, InvalidError, "one line"),
        ({"name": "x", "for_": "soon"}, InvalidError, "10m"),
        ({"name": "x", "for_": "0s"}, InvalidError, "10m"),
        ({"name": "x", "for_": "9999999d"}, InvalidError, "a year"),
        ({"name": "x", "until_task": "12"}, NotFoundError, "no task 12"),
    ],
)
async def test_what_cannot_be_is_refused_whole(
    running: Cluster, options: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        await running.swarm.profiler.start(**options)  # type: ignore[arg-type]
    assert not await running.swarm.profiler.list()


async def test_a_name_is_taken_once(running: Cluster) -> None:
    await running.swarm.profiler.start(name="one")
    with pytest.raises(RefusedError, match="records already"):
        await running.swarm.profiler.start(name="one")
    with pytest.raises(RefusedError, match="profiler stop one"):
        await running.swarm.profiler.delete("one")
    await sealed(running, "one")
    with pytest.raises(RefusedError, match="exists"):
        await running.swarm.profiler.start(name="one")
    await running.swarm.profiler.delete("one")
    assert not list((running.context.state_dir / "recordings").iterdir())
    await running.swarm.profiler.start(name="one")


async def test_tags_are_set_and_removed_and_kept_with_the_files(running: Cluster) -> None:
    await running.swarm.profiler.start(name="t", tag=["model=llama", "batch=64"])
    done = await sealed(running, "t")
    changed = await running.swarm.profiler.tag("t", ["batch=128", "lr=3e-4"], remove=["model"])
    assert changed.tags == {"batch": "128", "lr": "3e-4"} and changed.phase is SessionPhase.SEALED
    assert manifests.read(Path(done.path)).tags == changed.tags
    await running.swarm.profiler.start(name="other", tag=["batch=64"])
    for filters, names in (
        (["tags=batch=128"], ["t"]),
        (["tags~batch="], ["other", "t"]),
        (["tags!=batch=128"], ["other"]),
    ):
        assert sorted(s.name for s in await running.swarm.profiler.list(filter=filters)) == names
    with pytest.raises(NotFoundError, match=r"no tag batc.*batch"):
        await running.swarm.profiler.tag("t", remove=["batc"])
    with pytest.raises(InvalidError, match="nothing to change"):
        await running.swarm.profiler.tag("t")


async def test_marks_are_moments_and_spans(running: Cluster) -> None:
    await running.swarm.profiler.start(name="m")
    await session(running, "m", lambda s: s.phase is SessionPhase.RECORDING)
    await running.swarm.profiler.mark("loss is NaN")
    async with running.swarm.profiler.mark("epoch 1"):
        await running.swarm.profiler.mark("inside")

    def plain() -> None:
        with running.swarm.profiler.mark("epoch 2"):
            pass

    await asyncio.to_thread(plain)  # this test's loop is the host's too, which must answer meanwhile
    with pytest.raises(ZeroDivisionError):
        async with running.swarm.profiler.mark("epoch 3"):
            _ = 1 / 0
    events = sorted(await running.swarm.list(Event, filters=("type~profiler",)), key=lambda e: int(e.id))
    assert [(e.type.removeprefix("profiler."), e.message) for e in events] == [
        ("mark", "loss is NaN"), ("begin", "epoch 1"), ("mark", "inside"), ("end", "epoch 1"),
        ("begin", "epoch 2"), ("end", "epoch 2"), ("begin", "epoch 3"), ("end", "epoch 3"),
    ]  # fmt: skip
    assert [events[3].cause, events[5].cause, events[7].cause] == [events[1].id, events[4].id, events[6].id]


async def test_a_mark_says_anything_on_one_line(running: Cluster) -> None:
    for text in ("epoch 3/10", "loss → 0.2 (lr 1e-4)", "x" * 200):
        await running.swarm.profiler.mark(text)
    for text in ("", " ", "two\nlines", "\x1b[31m", "x" * 201):
        with pytest.raises(InvalidError, match="cannot be a mark"):
            await running.swarm.profiler.mark(text)
    told = [e.message for e in await running.swarm.list(Event, filters=("type=profiler.mark",))]
    assert len(told) == 3 and "epoch 3/10" in told


async def test_a_mark_right_after_the_start_is_in_it(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    marked, opening = threading.Event(), Recorder._open

    def slowly(self: Recorder) -> None:
        marked.wait(20)
        opening(self)

    monkeypatch.setattr(Recorder, "_open", slowly)
    await running.swarm.profiler.mark("of before")
    started = await running.swarm.profiler.start(name="marked")
    await running.swarm.profiler.mark("begin")
    marked.set()
    await session(running, "marked", lambda s: s.size_bytes > 0)
    stopped = await sealed(running, "marked")
    with Recording.open(Path(stopped.path)) as recording:
        assert recording.start == started.started_at
        assert [e.message for e in recording.events() if e.type == "profiler.mark"] == ["begin"]


async def test_it_stops_by_itself_after_its_time(running: Cluster) -> None:
    started = await running.swarm.profiler.start(name="brief", for_="1s")
    assert started.stops_at is not None and started.started_at is not None
    assert started.stops_at - started.started_at == timedelta(seconds=1)
    done = await session(running, "brief", lambda s: s.phase is SessionPhase.SEALED)
    assert done.stopped_at is not None and done.stopped_at >= started.stops_at
    (event,) = await running.swarm.list(Event, filters=("type=session.stopped",))
    assert "time is over" in event.message and event.actor == "host"


async def test_its_time_goes_on_while_no_host_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as first:
        started = await first.swarm.profiler.start(name="brief", for_="2s")
        assert started.stops_at is not None
    async with cluster(tmp_path) as second:
        done = await session(second, "brief", lambda s: s.phase is SessionPhase.SEALED)
        assert done.stopped_at is not None and done.stopped_at >= started.stops_at


@pytest.mark.parametrize("end", [queue_pb2.TASK_PHASE_DONE, queue_pb2.TASK_PHASE_FAILED, None])
async def test_it_stops_with_a_task(running: Cluster, end: queue_pb2.TaskPhase.ValueType | None) -> None:
    store = running.context.store

    def put(phase: queue_pb2.TaskPhase.ValueType | None) -> Callable[[Transaction], None]:
        if phase is None:
            return lambda tx: tx.delete(queue_pb2.Task, "7")
        return lambda tx: tx.put(queue_pb2.Task(id="7", workflow_id="w", phase=phase))

    await store.apply(put(queue_pb2.TASK_PHASE_RUNNING), actor="test")
    await running.swarm.profiler.start(name="with", until_task="7")
    await store.apply(put(queue_pb2.TASK_PHASE_BACKOFF), actor="test")
    assert (await running.swarm.profiler.info("with")).phase is SessionPhase.RECORDING
    await store.apply(put(end), actor="test")
    await session(running, "with", lambda s: s.phase is SessionPhase.SEALED)
    if end is not None:
        with pytest.raises(RefusedError, match="ended already"):
            await running.swarm.profiler.start(name="late", until_task="7")


async def test_the_fastest_session_sets_the_pace_and_the_slow_take_their_share(running: Cluster) -> None:
    async with running.agent("n1") as agent:
        (worker,) = (part for part in agent.__dict__.values() if type(part).__name__ == "ProfilerWorker")
        await running.swarm.profiler.start(name="slow", interval=1.0)
        await running.swarm.profiler.start(name="fast", interval=0.1)
        await session(running, "fast", lambda s: s.ticks > 30)
        assert worker.schedule.regular_s == 0.1
        fast = await sealed(running, "fast")
        await until(lambda: worker.schedule.regular_s == 1.0)
        slow = await sealed(running, "slow")
    with Recording.open(Path(fast.path)) as one, Recording.open(Path(slow.path)) as other:
        begin, end = (int(moment.timestamp() * 1e6) for moment in (one.start, one.end))
        quick = one.series(["power_mw"], start_us=begin, end_us=end)
        seldom = other.series(["power_mw"], start_us=begin, end_us=end)
        per_device = {one.device: len(one.times_us) for one in seldom}
        for found in quick:
            seconds = (end - begin) / 1e6
            assert len(found.times_us) > 4 * per_device[found.device]
            assert per_device[found.device] <= seconds + 2


async def test_nodes_join_and_leave_while_it_records(running: Cluster) -> None:
    await running.swarm.profiler.start(name="all", interval=0.1)
    async with running.agent("n1"):
        await session(running, "all", lambda s: s.ticks > 5)
        async with running.agent("n2"):
            before = await session(running, "all", lambda s: s.ticks > 5)
            await session(running, "all", lambda s: s.ticks > before.ticks + 20)
        after = await running.swarm.profiler.info("all")
        await session(running, "all", lambda s: s.ticks > after.ticks + 10)
    done = await sealed(running, "all")
    with Recording.open(Path(done.path)) as recording:
        series = recording.series(["power_mw"])
        assert {one.node for one in series} == {"n1", "n2"}
        times = {one.device: one.times_us for one in series}
        first, second = times["SIM-n1-0"], times["SIM-n2-0"]
        assert first[0] < second[0] and second[-1] < first[-1] and len(set(first)) == len(first)


async def test_a_full_disk_pauses_it_and_nothing_is_lost(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may grow beyond what the journal has; then it may again."""
    monkeypatch.setattr(recorder, "RETRY_S", (0.05, 0.1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with running.agent("n1", "8xH100"):
        try:
            await with_a_large_list(running)
            await running.swarm.profiler.start(name="full", interval=0.1)
            journal = running.context.state_dir / "recordings" / "full" / "journal-0001"
            await session(running, "full", lambda s: s.ticks > 5)
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 1000, hard))
            paused = await session(running, "full", lambda s: s.phase is SessionPhase.PAUSED)
            assert "too large" in paused.detail and "when there is room" in paused.detail
            held = await session(running, "full", lambda s: s.ticks > paused.ticks + 10)
            assert held.phase is SessionPhase.PAUSED
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        going = await session(running, "full", lambda s: s.phase is SessionPhase.RECORDING)
        assert going.detail == ""
        done = await sealed(running, "full")
    with Recording.open(Path(done.path)) as recording:
        assert recording.damage == ()
        (times,) = (one.times_us for one in recording.series(["power_mw"]) if one.device == "SIM-n1-0")
        assert len(times) == done.ticks and (times[1:] - times[:-1]).max() < 2_000_000
        assert {"session.paused", "session.resumed"} <= {event.type for event in recording.events()}


async def test_an_end_that_comes_while_the_disk_is_full_comes_when_there_is_room(
    running: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "ROOM_S", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with running.agent("n1"):
        await running.swarm.profiler.start(name="brief", interval=0.1, for_="3s")
        try:
            log = running.context.state_dir / "host.db-wal"
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
            await until(lambda: "session-end waits for room" in caplog.text)
            assert (await running.swarm.profiler.info("brief")).phase is not SessionPhase.STOPPED
            with pytest.raises(ExhaustedError, match="disk is full"):
                await running.swarm.profiler.stop("brief")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        done = await session(running, "brief", lambda s: s.phase is SessionPhase.SEALED)
    assert done.detail == "" and done.ticks > 5


async def test_more_than_can_be_held_leaves_a_gap_that_is_told(
    running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RETRY_S", (0.05, 0.1))
    monkeypatch.setattr(recorder, "BUFFER_LIMIT", 2_000_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with running.agent("n1", "8xH100"):
        try:
            await with_a_large_list(running)
            await running.swarm.profiler.start(name="full", interval=0.1)
            journal = running.context.state_dir / "recordings" / "full" / "journal-0001"
            await session(running, "full", lambda s: s.ticks > 5)
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, hard))
            paused = await session(running, "full", lambda s: s.phase is SessionPhase.PAUSED)
            for _ in range(3):
                await with_a_large_list(running)
            await session(running, "full", lambda s: s.ticks > paused.ticks + 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        before = await session(running, "full", lambda s: s.phase is SessionPhase.RECORDING)
        await session(running, "full", lambda s: s.ticks > before.ticks + 5)
        done = await sealed(running, "full")
    with Recording.open(Path(done.path)) as recording:
        gaps = [item for item in recording.records() if item.kind.name == "GAP"]
        assert gaps and b"cannot write" in gaps[0].payload
        recording.seek(recording.end)
        assert recording.rows(Session)["full"].name == "full"


async def test_a_long_session_is_sealed_while_it_goes_on(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Writer):
        """On a disk that takes its time, so that samples come while the next journal is made."""

        def __init__(self, path: Path) -> None:
            time.sleep(0.3)
            super().__init__(path)

    monkeypatch.setattr(recorder, "Writer", Slow)
    monkeypatch.setattr(recorder, "SEGMENT_BYTES", 20_000)
    async with running.agent("n1", "8xH100"):
        await running.swarm.profiler.start(name="long", interval=0.1)
        directory = running.context.state_dir / "recordings" / "long"
        await until((directory / "state-0002").exists)
        with Recording.open(directory) as recording:
            assert recording.damage == () and len(recording.segments) >= 3
        done = await sealed(running, "long")
    assert not list(directory.glob("journal*")) and len(list(directory.glob("state-*"))) >= 3
    with Recording.open(directory) as recording:
        assert recording.counts() == (done.ticks, done.events) and recording.damage == ()
        assert sum(len(one.times_us) for one in recording.series(["power_mw"])) >= 9 * done.ticks - 9
        recording.seek(recording.start)
        assert {device.node for device in recording.rows(Device).values()} == {"n1"}


async def test_what_ticks_mean_is_said_again_although_nothing_changes(
    running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "LIST_EVERY_S", 0.2)
    async with running.agent("n1", "2xH100"):
        await running.swarm.profiler.start(name="quiet", interval=0.1)
        journal = Path((await session(running, "quiet", lambda s: s.ticks > 0)).path) / "journal-0001"

        def announced() -> int:
            kinds = [found.kind for found in scan(journal.read_bytes())[0]]
            after = len(kinds) - kinds[::-1].index(Record.LIST)
            return kinds[after:].count(Record.SCHEMA)

        await until(lambda: announced() > 3)


async def test_an_adaptive_session_samples_seldom_until_something_moves(
    running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running.agent("n1", "1xH100") as agent:
        worker = next(part for part in agent.workers if isinstance(part, ProfilerWorker))
        device = next(part for part in agent.devices if isinstance(part, SimulatedDevice))
        await running.swarm.profiler.start(name="night", adaptive=True, interval=0.1, slowest=0.8)
        await until(lambda: worker.schedule.pace is not None and worker.schedule.pace.steps == 8)
        assert worker.schedule.regular_s == 0, "the usual second is given up"
        desired = running.context.nodes.desired
        assert desired.longest_s("n1") == 0.8 and desired.interval_s("n1") == 0.1
        read = device.read
        monkeypatch.setattr(device, "read", lambda: {**read(), "power_mw": 500_000})
        await until(lambda: worker.schedule.pace is not None and worker.schedule.pace.steps == 1)
        await until(lambda: worker.schedule.pace is not None and worker.schedule.pace.steps == 8)
        # A regular one beside it goes on at its own times.
        await running.swarm.profiler.start(name="regular", interval=0.3)
        assert (await session(running, "regular", lambda s: s.ticks > 3)).slowest_s == 0
        assert worker.schedule.regular_s == 0.3 and desired.longest_s("n1") == 0.3
        regular = await sealed(running, "regular")
        night = await sealed(running, "night")
        await until(lambda: worker.schedule.pace is None and worker.schedule.regular_s == 1.0)
    assert night.slowest_s == 0.8 and regular.slowest_s == 0
    with Recording.open(Path(night.path)) as found:
        (one,) = [s for s in found.series() if s.device == "SIM-n1-0"]
        past = history.read(found)
        jump = int(np.argmax(one.numbers("power_mw") == 500_000))
        steps = np.round(np.diff(one.times_us) / 1e5).astype(int)
        assert jump > 3 and steps[:jump].max() == 8 and steps[jump] == 1
        assert past.slowest_s == 0.8
        whole_s = (one.times_us[-1] - one.times_us[0]) / 1e6
        assert one.holds_s(past.interval_s, past.slowest_s)[:-1].sum() == pytest.approx(whole_s), "no pause is a gap"
