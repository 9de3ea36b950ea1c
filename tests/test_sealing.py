"""Sealing: the same recording before and after, small, readable by others, and whole or as it was when it is cut short."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.profiler import segments
from gswarm.profiler.recording import Recording
from gswarm.profiler.seal import seal
from tests.support.recordings import COLUMNS, START_US, Journal, a_run, schema, shown, tick

METRICS = [column.name for column in COLUMNS]


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
        names = ["n0-gpu0", "n0-gpu1", "n1-gpu0", "n1-gpu1"]
        assert [one.device for one in again] == [one.device for one in series] == names
        for mine, theirs in zip(again, series, strict=True):
            assert np.array_equal(mine.times_us // 1000, theirs.times_us // 1000)
            for metric in METRICS:
                assert np.array_equal(mine.numbers(metric), theirs.numbers(metric), equal_nan=True)
        part = sealed.series(["power_mw", "nothing"], start_us=moments[3], end_us=moments[6])
        assert [len(one.times_us) for one in part] == [58] * 4
        assert all(set(one.columns) == {"power_mw"} and np.isnan(one.numbers("nothing")).all() for one in part)


def held(recording: Recording) -> list[tuple[list[int], dict[str, list[float | int | None]]]]:
    """Every sample of each device in its own type: milliseconds, and its metrics' values."""
    return [
        (
            (one.times_us // 1000).tolist(),
            {
                name: [value if known else None for value, known in zip(c.values.tolist(), c.known, strict=True)]
                for name, c in sorted(one.columns.items())
            },
        )
        for one in recording.series()
    ]


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
            assert [(one.device, one.node) for one in series] == [("a", "n0"), ("b", "n0"), ("c", "n1")]
            assert [len(one.times_us) for one in series] == [30, 20, 10]
            assert np.array_equal(series[0].numbers("gpu_util_percent"), [*range(10), *[np.nan] * 20], equal_nan=True)
            assert np.array_equal(series[0].numbers("power_mw"), [*[np.nan] * 10, *range(10, 30)], equal_nan=True)
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
        before = held(live)
    seal(directory)
    with Recording.open(directory) as sealed:
        assert held(sealed) == before
        assert len(before[0][0]) == len(values)


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
        assert held(parts) == held(one)


def test_what_else_lies_in_the_directory_stays_and_is_in_nobodys_way(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run").write()
    (directory / "latest").symlink_to("nowhere")
    (directory / "notes").mkdir()
    told = seal(directory)
    assert told.ticks and (directory / "latest").is_symlink() and (directory / "notes").is_dir()


def test_reading_the_state_imports_nothing_heavy(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run", 60).write()
    seal(directory)
    code = """
        import sys
        from pathlib import Path
        from gswarm.cluster.types import Node
        from gswarm.profiler.recording import Recording, parse_at
        with Recording.open(Path(sys.argv[1])) as recording:
            recording.seek(parse_at("+30s", recording.start, recording.end))
            assert recording.rows(Node) and recording.counts() == (120, 13), recording.counts()
        assert not {"numpy", "pyarrow", "pandas"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(directory)], check=True, timeout=60)
