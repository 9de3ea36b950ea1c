"""Sealing: the same recording before and after, small, readable by others, and whole or as it was when it is cut short."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.cluster.types import Event, Node
from gswarm.errors import InvalidError
from gswarm.profiler import manifest as manifests
from gswarm.profiler import segments
from gswarm.profiler.clocks import offsets
from gswarm.profiler.recording import Recording
from gswarm.profiler.seal import seal
from tests.support.recordings import COLUMNS, START_US, Journal, a_run, schema, tick

METRICS = [column.name for column in COLUMNS]
FORMAT_1 = Path(__file__).parent / "fixtures" / "format-1"


def shown(recording: Recording, moment_us: int) -> tuple[object, ...]:
    """All that a screen shows of a moment; times as whole milliseconds."""
    recording.seek_us(moment_us)
    samples = recording._samples()
    at = {device: int(seconds * 1000) for device, seconds in samples.at.items()}
    return dict(recording.rows(Node)), dict(recording.rows(Event)), dict(samples.values), at, dict(samples.reasons)


def test_sealed_it_shows_what_it_showed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SLICE_ROWS", 100)
    monkeypatch.setattr(segments, "SLICE_TICKS", 8)
    directory = a_run(tmp_path / "run").write()
    # Not on a tick's own moment: those are kept to the millisecond.
    moments = [START_US + 500_000 + second * 1_000_000 for second in (150, 3, 0, 61, 62, 59, 119, 199, 13, 120)]
    with Recording.open(directory) as live:
        before = [shown(live, moment) for moment in moments]
        events, counts = live.events(), live.counts()
        series = live.series(METRICS)
        span = live.start, live.end
    told = seal(directory)
    assert sorted(path.name for path in directory.iterdir()) == [
        "events-0001.parquet", "manifest.json", "metrics-0001.parquet", "state-0001"
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
    with Recording.open(directory) as sealed:
        assert [shown(sealed, moment) for moment in moments] == before
        assert (sealed.events(), sealed.counts(), sealed.damage) == (events, counts, ())
        assert (sealed.start, sealed.end) == span and told.lost == ()
        again = sealed.series(METRICS)
        assert again.device_ids == series.device_ids == ("n0-gpu0", "n0-gpu1", "n1-gpu0", "n1-gpu1")
        assert np.array_equal(again.times_us // 1000, series.times_us // 1000)
        for mine, theirs in zip(again.values, series.values, strict=True):
            assert np.array_equal(mine, theirs, equal_nan=True)
        part = sealed.series(["power_mw", "nothing"], start_us=moments[3], end_us=moments[6])
        assert len(part.times_us) == 4 * 58 and np.isnan(part.column("nothing")).all()
        assert {device: len(part.times_us[rows]) for device, rows in part.devices()} == dict.fromkeys(
            again.device_ids, 58
        )


def test_a_step_goes_from_moment_to_moment_sealed_or_not(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run", 20).write()
    walked = []
    for _ in range(2):
        with Recording.open(directory) as recording:
            recording.seek(recording.start)
            seen = []
            for steps in (1, 1, 1, 5, -2, 1000, -1):
                recording.step(steps)
                seen.append(recording.cursor_us // 2000)
            walked.append(seen)
        seal(directory)
    assert walked[0] == walked[1] and len(set(walked[0])) == 7


def test_what_has_been_told_before_is_not_kept_twice(tmp_path: Path) -> None:
    """Lists of every few seconds make the same state as one."""
    seldom = a_run(tmp_path / "seldom", 300, lists_every=1000).write()
    often = a_run(tmp_path / "often", 300, lists_every=3).write()
    for directory in (seldom, often):
        seal(directory)
    sizes = [(directory / "state-0001").stat().st_size for directory in (seldom, often)]
    assert sizes[1] < 1.1 * sizes[0]
    with Recording.open(seldom) as one, Recording.open(often) as other:
        for second in (1, 100, 299):
            assert shown(one, START_US + second * 1_000_000) == shown(other, START_US + second * 1_000_000)


def test_columns_come_and_nodes_come_and_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    small, grown = schema("n0", ["a"], COLUMNS[:1]), schema("n0", ["a", "b"], COLUMNS, id=2)
    late = schema("n1", ["c"], COLUMNS[:2])
    journal.list()
    journal.schema(small)
    for second in range(30):
        journal.now_us = START_US + second * 1_000_000
        if second < 10:
            journal.tick(tick(small, journal.now_us, [{"gpu_util_percent": second}], second + 1))
        if second == 10:
            journal.schema(grown)
        if second >= 10:
            journal.tick(tick(grown, journal.now_us, [{"power_mw": second}, {"energy_mj": second}], second + 1))
        if second == 5:
            journal.schema(late)
        if 5 <= second < 15:
            journal.tick(tick(late, journal.now_us, [{"power_mw": 7}], second + 1))
    directory = journal.write()
    for _ in range(2):
        with Recording.open(directory) as recording:
            series = recording.series(METRICS)
            assert (series.device_ids, series.nodes) == (("a", "b", "c"), ("n0", "n0", "n1"))
            rows = dict(series.devices())
            assert [rows[d].stop - rows[d].start for d in ("a", "b", "c")] == [30, 20, 10]
            assert np.array_equal(
                series.column("gpu_util_percent")[rows["a"]], [*range(10), *[np.nan] * 20], equal_nan=True
            )
            assert np.array_equal(
                series.column("power_mw")[rows["a"]], [*[np.nan] * 10, *range(10, 30)], equal_nan=True
            )
            # A node that left shows its last sample, with its age.
            assert shown(recording, START_US + 29_000_000)[2]["c"] == {"power_mw": 7}  # type: ignore[index]
            assert "c" not in shown(recording, START_US + 4_000_000)[2]  # type: ignore[operator]
        seal(directory)


ROWS = st.lists(
    st.tuples(
        st.floats(width=32, allow_nan=False) | st.none(),
        st.integers(-(2**31) + 1, 2**31 - 1) | st.none(),
        st.integers(0, 2**64 - 2) | st.none(),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_every_value_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float | int | None, ...]]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("values") / "run")
    layout = schema("n0", ["a"])
    journal.list()
    journal.schema(layout)
    for number, row in enumerate(values):
        journal.now_us = START_US + number * 1_000_000
        journal.tick(tick(layout, journal.now_us, [dict(zip(METRICS, row, strict=True))], number + 1))
    directory = journal.write()
    with Recording.open(directory) as live:
        before = [(t.time_unix_us, t.f32, t.i32, t.u64) for _, t in live.ticks()]
    seal(directory)
    with Recording.open(directory) as sealed:
        assert [(t.time_unix_us, t.f32, t.i32, t.u64) for _, t in sealed.ticks()] == before
        assert len(before) == len(values)


def test_others_read_it_with_no_code_of_ours(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run").write()
    seal(directory)
    code = """
        import sys, pyarrow.parquet as pq
        table = pq.read_table(sys.argv[1] + "/metrics-0001.parquet").to_pandas() if False else pq.read_table(sys.argv[1] + "/metrics-0001.parquet")
        assert table.column_names == ["device_id", "node", "time", "gpu_util_percent", "power_mw", "energy_mj"]
        rows = table.to_pylist()
        assert [(r["device_id"], r["time"]) for r in rows] == sorted((r["device_id"], r["time"]) for r in rows)
        assert len(rows) == 800 and sum(r["gpu_util_percent"] is None for r in rows) == 116, sum(r["gpu_util_percent"] is None for r in rows)
        assert rows[1]["power_mw"] == 70997 and rows[1]["energy_mj"] == (1 << 50) + 300000
        assert table.schema.field("power_mw").metadata[b"unit"] == b"mW"
        events = pq.read_table(sys.argv[1] + "/events-0001.parquet").to_pylist()
        assert [e["message"] for e in events] == ["mark 10", "mark 60", "mark 110", "mark 160"]
        assert events[0]["severity"] == "info" and events[0]["type"] == "profiler.mark" and events[0]["revision"] > 1
        assert "gswarm" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(directory)], check=True, timeout=60, cwd=tmp_path)


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_data_tools_read_it(tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library)
    directory = a_run(tmp_path / "run").write()
    seal(directory)
    path = str(directory / "metrics-0001.parquet")
    if library == "duckdb":
        (found,) = module.sql(f"select count(*), max(power_mw), count(gpu_util_percent) from '{path}'").fetchall()
    elif library == "polars":
        frame = module.read_parquet(path)
        found = (frame.height, frame["power_mw"].max(), frame.height - frame["gpu_util_percent"].null_count())
    else:
        frame = module.read_parquet(path)
        found = (len(frame), frame["power_mw"].max(), frame["gpu_util_percent"].count())
    assert tuple(int(n) for n in found) == (800, 70_000 + 997 * 199 + 1, 684)


def test_several_segments_are_one_recording(tmp_path: Path) -> None:
    """As of a session that has run long: two parts are sealed, the third is being written."""
    journal = a_run(tmp_path / "run", 300)
    records = journal.records
    cut = len(records) // 3
    whole = Journal(tmp_path / "whole")
    whole.records = list(records)
    whole.write()
    # Each journal starts with a list and the schemas, as a recorder starts it.
    lists = [i for i, r in enumerate(records) if r[12] == 4]
    edges = [0, min(i for i in lists if i >= cut), min(i for i in lists if i >= 2 * cut), len(records)]
    for number in range(3):
        journal.records = records[edges[number] : edges[number + 1]]
        journal.write(number + 1)
    seal(tmp_path / "run", 1)
    seal(tmp_path / "run", 2)
    assert (tmp_path / "run" / "journal-0003").is_file() and not (tmp_path / "run" / "journal-0002").is_file()
    with Recording.open(tmp_path / "run") as parts, Recording.open(tmp_path / "whole") as one:
        for second in (0, 99, 130, 181, 250, 299, 40):
            assert shown(parts, START_US + 500_000 + second * 1_000_000) == shown(
                one, START_US + 500_000 + second * 1_000_000
            )
        assert parts.events() == one.events() and parts.counts() == one.counts()
        assert np.array_equal(parts.series(METRICS).column("energy_mj"), one.series(METRICS).column("energy_mj"))


# What goes wrong


FILES = ("state-0001", "metrics-0001.parquet", "events-0001.parquet")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_costs_its_part_and_is_told(
    tmp_path_factory: pytest.TempPathFactory, name: str, share: float, bit: int
) -> None:
    root = tmp_path_factory.mktemp("flip")
    directory = a_run(root / "run", 60).write()
    seal(directory)
    body = bytearray((directory / name).read_bytes())
    body[int(len(body) * share)] ^= 1 << bit
    (directory / name).write_bytes(body)
    try:
        with Recording.open(directory) as recording:
            recording.events()
            values = recording.series(METRICS)
            shown(recording, START_US + 30_500_000)
            # Either it is found out, or it was a byte that says nothing (a statistic, a file's own remarks).
            if not recording.damage:
                assert len(values.times_us) == 240 and len(recording.events()) == 1
    except InvalidError as error:
        pytest.fail(f"one bit made it unreadable: {error}")
    shutil.rmtree(root)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_cut_short_it_opens_with_what_is_whole(tmp_path: Path, name: str, share: float) -> None:
    directory = a_run(tmp_path / "run", 200, lists_every=50).write()
    seal(directory)
    path = directory / name
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])
    with Recording.open(directory) as recording:
        if name != "state-0001":
            assert len(recording.events()) == 4 and recording.rows(Node)
        samples = len(recording.series(METRICS).times_us)
        assert samples == (0 if name.startswith("metrics") else 800)
        assert any(name in sentence for sentence in recording.damage), recording.damage


def test_without_room_nothing_is_changed(tmp_path: Path) -> None:
    """The child may write no file as large as the samples: it fails, and the journal is still the recording."""
    directory = a_run(tmp_path / "run", 400).write()
    code = """
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        from gswarm.profiler.seal import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(directory)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "too large" in done.stderr, done.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["journal-0001", "manifest.json"]
    assert seal(directory).ticks == 800


def test_killed_at_any_point_it_is_sealed_the_next_time(tmp_path: Path) -> None:
    """SIGKILL after each file that the child puts in place."""
    before = None
    for steps in range(4):
        directory = a_run(tmp_path / f"run{steps}", 100).write()
        code = f"""
            import os, signal, sys
            from pathlib import Path
            from gswarm.profiler import seal
            steps, replace = {steps}, Path.replace
            def counting(self, target):
                global steps
                if steps == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps -= 1
                return replace(self, target)
            Path.replace = counting
            seal.main()
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(directory)], timeout=60, stdout=-3)
        assert done.returncode == (-signal.SIGKILL if steps < 3 else 0)
        with Recording.open(directory) as recording:
            found = recording.counts(), [shown(recording, START_US + 500_000 + s * 1_000_000) for s in (1, 50, 99)]
        before = before or found
        assert found == before
        seal(directory)
        assert not [path.name for path in directory.iterdir() if path.name.startswith((".", "journal"))]
        with Recording.open(directory) as recording:
            assert (
                recording.counts(),
                [shown(recording, START_US + 500_000 + s * 1_000_000) for s in (1, 50, 99)],
            ) == found


def test_a_journal_that_is_written_is_not_sealed(tmp_path: Path) -> None:
    from gswarm.profiler.journal import Writer

    directory = a_run(tmp_path / "run", 10).write()
    writer = Writer(manifests.files(directory, 1).journal)
    done = subprocess.run(
        [sys.executable, "-m", "gswarm.profiler.seal", str(directory)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "being recorded" in done.stderr
    writer.close()
    assert seal(directory).ticks == 20


# Older formats


def test_a_sealed_recording_of_format_1_is_read_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    shutil.copytree(FORMAT_1, directory)
    names = sorted(path.name for path in directory.iterdir())
    assert seal(directory).ticks == 10 and sorted(path.name for path in directory.iterdir()) == names
    with Recording.open(directory) as recording:
        assert recording.name == "old" and recording.counts() == (10, 2) and recording.damage == ()
        assert [event.message for event in recording.events() if event.type == "profiler.mark"] == ["here"]
        assert set(recording.rows(Node)) == {"n1"}
        series = recording.series(["power_mw", "memory_total_bytes"])
        rows = dict(series.devices())
        assert {series.column("power_mw")[rows[f"SIM-n1-{d}"]].mean() for d in (0, 1)} == {70_000.0}
        assert series.column("memory_total_bytes")[rows["SIM-n1-0"]][0] == 80 * 2**30
        assert set(shown(recording, recording.cursor_us)[2]) >= {"SIM-n1-0", "SIM-n1-1"}  # type: ignore[call-overload]


def test_an_unsealed_recording_of_format_1_is_sealed_as_ours(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    shutil.copytree(FORMAT_1, directory)
    (directory / "metrics-0001.parquet").unlink()
    with Recording.open(directory) as recording:
        before = recording.series(["power_mw"]), recording.events()
    assert seal(directory).ticks == 10
    assert manifests.read(directory).format == 2 and (directory / "state-0001").is_file()
    with Recording.open(directory) as recording:
        after = recording.series(["power_mw"]), recording.events()
    assert after[1] == before[1] and np.array_equal(after[0].values[0], before[0].values[0], equal_nan=True)


# Clocks


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
    """Ticks of ten seconds come together: late, each less than the one before."""
    seqs, host, arrived = arrivals(60)
    arrived[20:30] = arrived[30]
    found, changes = offsets(seqs, host, arrived)
    assert not found.any() and len(changes) == 1
