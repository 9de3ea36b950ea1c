"""Recordings: whatever byte the power went at, what was written before it is read, and shown as it was then."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gswarm.cluster.types import Node
from gswarm.errors import InvalidError, NotFoundError
from gswarm.profiler import journal
from gswarm.profiler.journal import Record, Writer, frame, scan
from gswarm.profiler.recording import Recording, parse_at
from gswarm.profiler.types import Session, session_sealed
from gswarm.v1 import cluster_pb2
from tests.support.cluster import Cluster, cluster, seen

RECORDS = st.lists(
    st.tuples(st.sampled_from(list(Record)), st.integers(0, 2**53), st.binary(max_size=60)), min_size=1, max_size=8
)


def contents(data: bytes) -> list[tuple[Record, int, bytes]]:
    return [(f.kind, f.time_us, data[f.offset : f.offset + f.size]) for f in scan(data)[0]]


@given(RECORDS)
def test_what_is_framed_is_read_back(records: list[tuple[Record, int, bytes]]) -> None:
    data = b"".join(frame(*record) for record in records)
    assert contents(data) == records and scan(data)[1] == 0


@given(RECORDS, st.data())
def test_cut_at_any_byte_only_the_torn_record_is_gone(
    records: list[tuple[Record, int, bytes]], data: st.DataObject
) -> None:
    frames = [frame(*record) for record in records]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))
    kept, end = 0, 0
    for one in frames:
        end += len(one)
        kept += end <= cut
    assert contents(whole[:cut]) == records[:kept]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        path.write_bytes(whole[:cut])
        writer = Writer(path)
        writer.append(frame(Record.GAP, 7, b"after the crash"))
        writer.close()
        assert contents(path.read_bytes()) == [*records[:kept], (Record.GAP, 7, b"after the crash")]


@given(RECORDS, st.data())
def test_a_damaged_byte_costs_one_record(records: list[tuple[Record, int, bytes]], data: st.DataObject) -> None:
    frames = [frame(*record) for record in records]
    whole = bytearray(b"".join(frames))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    start, hit = 0, 0
    for number, one in enumerate(frames):
        if start <= at < start + len(one):
            hit = number
        start += len(one)
    found = contents(bytes(whole))
    for record in (*records[:hit], *records[hit + 1 :]):
        assert record in found
    assert len(found) == len(records) - 1 and scan(bytes(whole))[1] > 0


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_noise_is_no_record_and_no_error(data: bytes) -> None:
    scan(data)
    scan(journal._MAGIC + data)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from gswarm.profiler.journal import Record, Writer, frame
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        writer = Writer(Path(sys.argv[1]))
        writer.append(frame(Record.GAP, 1, b"fits"))
        try:
            writer.append(frame(Record.GAP, 2, bytes(2000)))
        except OSError:
            writer.append(frame(Record.GAP, 3, b"fits again"))
    """
    path = tmp_path / "journal"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=True, timeout=30)
    assert [payload for _, _, payload in contents(path.read_bytes())] == [b"fits", b"fits again"]


def manifest(directory: Path, **changed: object) -> Path:
    """A directory that says it is a recording."""
    directory.mkdir(exist_ok=True)
    body = {"format": journal.FORMAT, "name": "x", "interval_s": 1.0, "nodes": [], "started_at": "2026-11-24T12:00:00Z"}
    (directory / "manifest.json").write_text(json.dumps(body | changed))
    return directory


def test_what_is_no_recording_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    with pytest.raises(NotFoundError, match="no recording"):
        Recording.open(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        Recording.open(tmp_path)
    with pytest.raises(InvalidError, match="newer gswarm"):
        Recording.open(manifest(tmp_path / "newer", format=journal.FORMAT + 1))
    with pytest.raises(InvalidError, match="damaged"):
        Recording.open(manifest(tmp_path / "odd", format="abc"))
    with pytest.raises(InvalidError, match="nothing that can be read"):
        Recording.open(manifest(tmp_path / "empty"))
    (manifest(tmp_path / "noise") / "journal").write_bytes(os.urandom(5000))
    with pytest.raises(InvalidError, match="nothing that can be read"):
        Recording.open(tmp_path / "noise")


START, END = datetime(2026, 11, 24, 12, 0, tzinfo=UTC), datetime(2026, 11, 24, 13, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("+12m", 720), ("+90s", 90), ("+1.5h", 5400), ("+7", 7), ("2026-11-24T12:04:31Z", 271), ("2026-11-24T13:04:31+01:00", 271)],
)  # fmt: skip
def test_times_in_a_recording(text: str, seconds: float) -> None:
    assert parse_at(text, START, END) == START + timedelta(seconds=seconds)


def test_a_time_of_day_is_ours_and_may_be_tomorrow() -> None:
    late = datetime(2026, 11, 24, 23, 50, tzinfo=UTC)
    local = (late + timedelta(minutes=20)).astimezone()
    assert parse_at(f"{local:%H:%M:%S}", late, late + timedelta(hours=1)) == late + timedelta(minutes=20)


@given(st.text(max_size=20))
@example("+99999999999999999999h")
def test_what_is_no_time_is_refused(text: str) -> None:
    try:
        assert parse_at(text, START, END).tzinfo is not None
    except InvalidError as error:
        assert error.field == "at"


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as found:
        yield found


async def test_the_past_answers_as_the_present_did(running: Cluster) -> None:
    """The same reads, live and at the same revision of the recording."""
    await running.swarm.profiler.start(name="run")
    then: dict[int, list[Node]] = {}
    async with running.swarm.mirror((Session,), samples=False) as mirror:
        await seen(mirror, lambda: mirror.rows(Session), lambda rows: "run" in rows)
        for number in range(40):

            def operation(tx: object, n: int = number) -> None:
                tx.put(cluster_pb2.Node(name=f"n{n % 5}", cpu_count=n + 1))  # type: ignore[attr-defined]
                if n % 7 == 3:
                    tx.delete(cluster_pb2.Node, f"n{(n + 2) % 5}")  # type: ignore[attr-defined]

            await running.context.store.apply(operation, actor="test")
            live = await running.swarm.list(Node, filters=("cpu_count!=3",), sort="-cpu_count", limit=3)
            then[live.revision] = list(live)
        stopped = await running.swarm.wait(session_sealed, await running.swarm.profiler.stop("run"), timeout=60)
    with Recording.open(Path(stopped.path)) as recording:
        moments = {
            cluster_pb2.WatchResponse.FromString(i.payload).revision: i.time_us
            for i in recording.records()
            if i.kind is Record.BATCH
        }
        compared = 0
        for revision, rows in sorted(then.items(), key=lambda item: -item[0] % 7):  # back and forth
            if revision not in moments or list(moments.values()).count(moments[revision]) > 1:
                continue
            recording.seek_us(moments[revision])
            past = await recording.list(Node, filters=("cpu_count!=3",), sort="-cpu_count", limit=3)
            assert list(past) == rows and past.revision == revision
            compared += 1
        assert compared > 20
        with pytest.raises(InvalidError, match="live host"):
            await recording.call(cluster_pb2.ListTokensRequest())
        with pytest.raises(NotFoundError, match="n0"):
            await recording.get(Node, "n00")


async def test_a_recorder_killed_with_its_host_loses_at_most_the_last_moment(tmp_path: Path) -> None:
    """A real host process, killed while it records; the next one seals what it finds."""
    from gswarm.profiler.types import SessionPhase
    from tests.support.processes import installation

    with installation(tmp_path) as here:
        here.run("up", "--simulate", "2xH100", "--no-console", timeout=90)
        here.run("profiler", "start", "--name", "run", "--interval", "0.2")
        told = 0
        async with asyncio.timeout(60):
            while told < 10:
                told = int(here.json("profiler", "info", "run")["ticks"])  # type: ignore[index]
                await asyncio.sleep(0.1)
        pid = int(here.json("status")["pid"])  # type: ignore[index]
        os.kill(pid, signal.SIGKILL)
        (directory,) = here.state.glob("*/recordings/run")
        with Recording.open(directory) as recording:
            assert recording.counts()[0] >= told
        here.run("up", "--no-console", timeout=90)
        here.run("profiler", "stop", "run")
        session = here.json("profiler", "info", "run")
        assert session["phase"] == SessionPhase.SEALED.value and int(session["ticks"]) >= told  # type: ignore[index]
        here.run("down", timeout=60)
