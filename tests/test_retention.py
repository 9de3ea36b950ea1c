"""Which recordings are kept, taken up and deleted, also over crashes."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gswarm.cluster.types import Event
from gswarm.config import Config, ProfilerConfig
from gswarm.errors import InvalidError
from gswarm.host.transaction import Transaction
from gswarm.profiler import retention
from gswarm.profiler.types import SessionPhase
from gswarm.v1 import profiler_pb2
from tests.support.cluster import Cluster, cluster
from tests.support.sessions import session, until


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as found:
        yield found


def put_sealed(name: str, days: float, size: int) -> Callable[[Transaction], None]:
    def operation(tx: Transaction) -> None:
        made = profiler_pb2.Session(name=name, phase=profiler_pb2.SESSION_PHASE_SEALED, size_bytes=size)
        made.stopped_at.FromDatetime(datetime.now(UTC) - timedelta(days=days))
        tx.put(made)

    return operation


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (ProfilerConfig(), {"old", "mid", "new", "busy"}),
        (ProfilerConfig(keep_days=5), {"mid", "new", "busy"}),
        (ProfilerConfig(keep_gb=2.5), {"new", "mid", "busy"}),
        (ProfilerConfig(keep_gb=0.001), {"busy"}),
        (ProfilerConfig(keep_days=0.5, keep_gb=100), {"busy"}),
    ],
)
async def test_what_is_too_old_or_too_much_goes(running: Cluster, limits: ProfilerConfig, left: set[str]) -> None:
    root, store = running.context.state_dir / "recordings", running.context.store
    for name, days in (("old", 9), ("mid", 4), ("new", 1)):
        (root / name).mkdir(parents=True)
        (root / name / "state-0001").write_bytes(b"x")
        await store.apply(put_sealed(name, days, 1 << 30), actor="test")
    await running.swarm.profiler.start(name="busy")
    await session(running, "busy", lambda s: s.size_bytes > 0)
    await retention.expire(store, root, limits)
    assert {s.name for s in store.state.list(profiler_pb2.Session)} == left
    assert {path.name for path in root.iterdir()} == left
    deleted = await running.swarm.list(Event, filters=("type=session.deleted",))
    assert {event.subject for event in deleted} == {"old", "mid", "new"} - left
    assert all("older than" in event.message or "recordings take" in event.message for event in deleted)


async def test_recordings_without_a_session_are_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files came back from a backup, the host's state did not; one was never sealed."""
    from tests.support.recordings import a_run

    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    root = tmp_path / "recordings"
    a_run(root / "whole", 30).write()
    data = b"".join(a_run(root / "torn", 30).records)
    journal = a_run(root / "torn", 30)
    journal.write(data=data[:-20])
    (root / "noise").mkdir()
    (root / "noise" / "manifest.json").write_text("{}")
    async with cluster(tmp_path) as running:
        whole = await session(running, "whole", lambda s: s.phase is SessionPhase.SEALED)
        torn = await session(running, "torn", lambda s: s.phase is SessionPhase.SEALED)
        assert whole.ticks == 60 and torn.ticks == 59 and "belong to no whole record" in torn.detail
        assert {s.name for s in await running.swarm.profiler.list()} == {"whole", "torn"}
    assert json.loads((root / "noise" / "manifest.json").read_text()) == {}


async def test_what_is_taken_up_is_as_old_as_its_newest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that a crash cut off does not say when it stopped; it must not be deleted for that."""
    from tests.support.recordings import a_run

    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    root = tmp_path / "recordings"
    a_run(root / "yesterday", 30).write()
    for path in a_run(root / "once", 30).write().iterdir():
        os.utime(path, (1.7e9, 1.7e9))
    async with cluster(tmp_path) as running:
        for name in ("yesterday", "once"):
            await session(running, name, lambda s: s.phase is SessionPhase.SEALED)
        await retention.expire(running.context.store, root, ProfilerConfig(keep_days=30))
        (kept,) = await running.swarm.profiler.list()
        assert kept.name == "yesterday" and not (root / "once").exists()
        assert kept.stopped_at is not None and datetime.now(UTC) - kept.stopped_at < timedelta(days=1)


async def test_a_file_that_vanishes_meanwhile_is_no_obstacle(running: Cluster) -> None:
    from tests.support.recordings import a_run

    root, store = running.context.state_dir / "recordings", running.context.store
    a_run(root / "found", 10).write()
    (root / "found" / "vanished").symlink_to("nowhere")  # listed, and not there when it is looked at
    await retention.tidy(store, root)
    (found,) = store.state.list(profiler_pb2.Session)
    assert datetime.now(UTC) - found.stopped_at.ToDatetime(UTC) < timedelta(days=1)


async def test_a_deletion_that_a_crash_cut_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.recordings import a_run

    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    a_run(tmp_path / "recordings" / "gone", 10).write()
    async with cluster(tmp_path) as running:
        await session(running, "gone", lambda s: s.phase is SessionPhase.SEALED)

        def decided(tx: Transaction) -> None:
            found = tx.get(profiler_pb2.Session, "gone")
            assert found is not None
            retention.delete(tx, found)

        await running.context.store.apply(decided, actor="test")
        assert (tmp_path / "recordings" / "gone" / "state-0001").exists()
    async with cluster(tmp_path) as running:
        assert not await running.swarm.profiler.list()
        await until(lambda: not (tmp_path / "recordings" / "gone").exists())


def test_limits_below_zero_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gswarm import config

    monkeypatch.setenv("GSWARM_PROFILER_KEEP_DAYS", "-1")
    with pytest.raises(InvalidError, match="keep_days"):
        config.load()
    monkeypatch.setenv("GSWARM_PROFILER_KEEP_DAYS", "30")
    assert config.load().profiler == replace(Config().profiler, keep_days=30.0)
