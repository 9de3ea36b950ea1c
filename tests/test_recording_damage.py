"""Recordings that are cut short, flipped, killed while they are sealed, or of an older format."""

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

from gswarm.cluster.types import Node
from gswarm.errors import InvalidError
from gswarm.profiler import manifest as manifests
from gswarm.profiler.journal import Record
from gswarm.profiler.recording import Recording
from gswarm.profiler.seal import seal
from tests.support.recordings import COLUMNS, START_US, a_run, shown

METRICS = [column.name for column in COLUMNS]
FORMAT_1 = Path(__file__).parent / "fixtures" / "format-1"


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
                assert sum(len(one.times_us) for one in values) == 240 and len(recording.events()) == 1
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
        samples = sum(len(one.times_us) for one in recording.series(METRICS))
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
        found = {one.device: one for one in recording.series(["power_mw", "memory_total_bytes"])}
        assert {found[f"SIM-n1-{d}"].numbers("power_mw").mean() for d in (0, 1)} == {70_000.0}
        assert found["SIM-n1-0"].numbers("memory_total_bytes")[0] == 80 * 2**30
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
    assert after[1] == before[1]
    for mine, theirs in zip(after[0], before[0], strict=True):
        assert np.array_equal(mine.numbers("power_mw"), theirs.numbers("power_mw"), equal_nan=True)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_ticks_whose_schema_is_damaged_are_read_with_its_next_copy(tmp_path: Path, is_sealed: bool) -> None:
    whole = a_run(tmp_path / "whole", 130).write()
    journal = a_run(tmp_path / "run", 130)
    first = next(i for i, record in enumerate(journal.records) if record[12] == Record.SCHEMA)
    for number in (first, first + 1):  # of both nodes
        broken = bytearray(journal.records[number])
        broken[-3] ^= 4
        journal.records[number] = bytes(broken)
    directory = journal.write()
    if is_sealed:
        assert seal(directory).lost
    with Recording.open(directory) as found, Recording.open(whole) as expected:
        ours, theirs = found.series(METRICS), expected.series(METRICS)
        assert [len(one.times_us) for one in ours] == [130] * 4
        for one, other in zip(ours, theirs, strict=True):
            assert (one.times_us // 1000 == other.times_us // 1000).all()
            for name in METRICS:
                np.testing.assert_array_equal(one.numbers(name), other.numbers(name))
        assert any("no whole record" in sentence for sentence in found.damage), found.damage
