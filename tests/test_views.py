"""What a person reads: units that keep their rules, NA where nothing is known, SIM where nothing is real, ages as of then."""

from __future__ import annotations

import dataclasses
import importlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm import units, views
from gswarm.cluster.types import Device, DeviceKind, DevicePhase, Event, Node, NodePhase, TokenInfo
from gswarm.data.types import Chunk, ChunkType
from gswarm.errors import InvalidError
from gswarm.host.selection import predicate
from gswarm.model.types import Model, Placement, Service
from gswarm.profiler.types import Session
from gswarm.queue.types import Block, Task, TaskPhase, Workflow
from gswarm.swarm import parse_filter
from gswarm.v1 import cluster_pb2, common_pb2

NOON = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)
GIB = 2**30


def row(one: Any, *, now: datetime = NOON) -> dict[str, str]:
    """The cells of one object by their heading."""
    return {c.heading: c.read(one, now) for c in views.columns(type(one))}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "NA"), (0, "0"), (512, "512"), (1023, "1.0k"), (1024, "1.0k"), (10 * 1024, "10k"), (8 * 2**20, "8.0M"),
        (80 * GIB, "80G"), (999 * 2**40, "999T"), (5000 * 2**50, "5000P"),
    ],
)  # fmt: skip
def test_sizes(value: int | None, told: str) -> None:
    assert units.size(value) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "NA"), (0, "0.0s"), (0.42, "0.4s"), (12.9, "12s"), (60, "1m"), (200, "3m20"), (8220, "2h17"),
        (273600, "3d4h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, told: str) -> None:
    assert units.duration(seconds) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "NA"), (-3, "0s"), (9.9, "9s"), (14, "10s"), (59, "55s"), (61, "1m"), (3599, "59m"), (3700, "1h01")],
)
def test_ages_step_so_that_nothing_jumps(seconds: float | None, told: str) -> None:
    assert units.age(seconds) == told


@given(st.integers(0, 2**59))
def test_a_size_is_short_and_within_five_percent(value: int) -> None:
    told = units.size(value)
    assert len(told) <= 4
    number, suffix = (told[:-1], told[-1]) if told[-1] in "kMGTP" else (told, "")
    meant = float(number) * 1024 ** ("kMGTP".index(suffix) + 1 if suffix else 0)
    assert meant == pytest.approx(value, rel=0.06)


@given(st.integers(0, 2**62), st.sampled_from(["", "K", "kB", "MiB", "G", "GiB", "T"]))
def test_a_size_is_read_as_it_is_written(number: int, suffix: str) -> None:
    factor = 1024 ** ("KMGT".index(suffix[0].upper()) + 1) if suffix else 1
    small = number // factor
    assert units.parse_size(f"{small}{suffix}") == pytest.approx(small * factor)


@pytest.mark.parametrize("text", ["", "x", "-1", "1X", "1e40", "nan", "inf"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        units.parse_size(text)


def test_what_is_not_known_is_na_and_never_0() -> None:
    assert row(Service("s", "m", "v1", tokens_per_s=None))["TOK/S"] == "NA"
    assert row(Service("s", "m", "v1", tokens_per_s=0.0))["TOK/S"] == "0"
    assert row(Model("m"))["SIZE"] == "NA"
    assert row(Placement("m@v1/n1", "m", "v1", "n1"))["OF"] == "NA"
    assert row(Node("n1")) | {"CPUS": "NA", "MEMORY": "NA"} == row(Node("n1"))
    assert row(Device("GPU-1", "n1:gpu0"))["MEMORY"] == "NA"
    assert row(Chunk("c"))["AGE"] == "NA"
    assert row(Event("1"))["TIME"] == "NA"
    assert row(TokenInfo("t"))["MADE"] == "NA"
    assert row(Session("s"))["STARTED"] == "NA"
    detail = dict(views.detail(Service("s", "m", "v1")))
    assert (detail["memory"], detail["tokens/s"], detail["load"]) == ("NA", "NA", "NA")
    assert dict(views.detail(Model("m")))["size"] == "NA"


def test_a_rate_is_no_duration() -> None:
    detail = dict(views.detail(Service("s", "m", "v1", tokens_per_s=1234.5, load_s=75.0, memory_bytes=GIB)))
    assert (detail["tokens/s"], detail["load"]) == ("1.2k", "1m15")
    assert detail["memory"] == f"1.0G ({GIB} bytes)"


def test_what_is_simulated_says_so() -> None:
    device = Device("SIM-1", "n1:gpu0", "n1", 0, DeviceKind.SIMULATED, "H100", 80 * GIB, None, DevicePhase.READY)
    assert row(device)["KIND"] == "SIM"
    assert row(dataclasses.replace(device, kind=DeviceKind.GPU))["KIND"] == "gpu"
    assert row(Model("m", simulated=True, metadata={"architecture": "llama"}))["KIND"] == "SIM"
    assert row(Service("s", "m", "v1", backend="simulated", simulated=True))["BACKEND"].endswith("SIM")
    assert "SIM" not in row(Service("s", "m", "v1", backend="vllm"))["BACKEND"]


def test_ages_count_to_the_moment_that_is_shown() -> None:
    """A recording shows what the host would have shown then, however long ago that is."""
    task = Task("1", ready_at=NOON - timedelta(seconds=90), phase=TaskPhase.READY)
    assert (row(task)["WAIT"], row(task)["RAN"]) == ("1m", "-")
    running = dataclasses.replace(task, started_at=NOON - timedelta(seconds=30), phase=TaskPhase.RUNNING)
    assert (row(running)["WAIT"], row(running)["RAN"]) == ("1m", "30s")
    ended = dataclasses.replace(running, finished_at=NOON - timedelta(seconds=10))
    assert row(ended)["RAN"] == "20s"
    assert row(ended, now=NOON + timedelta(days=9)) == row(ended)
    for made in (Chunk("c", created_at=NOON), Workflow("w1", created_at=NOON)):
        assert row(made, now=NOON + timedelta(minutes=7))["AGE"] == "7m"
    assert row(Session("s", started_at=NOON), now=NOON + timedelta(hours=2))["STARTED"] == "2h00"
    _, line = views.table([running], Task, now=NOON + timedelta(seconds=15))
    assert "45s" in line.split()


def test_a_host_whose_clock_is_behind_shows_no_negative_times() -> None:
    task = Task("1", ready_at=NOON + timedelta(seconds=5), started_at=NOON + timedelta(seconds=5))
    assert (row(task)["WAIT"], row(task)["RAN"]) == ("0s", "0.0s")


def test_a_table_fits_a_narrow_terminal() -> None:
    nodes = [Node(f"node-{i}", phase=NodePhase.UNREACHABLE, version="0.1.0", detail="silent for " * 9) for i in (1, 2)]
    wide = views.table(nodes, Node)
    assert max(map(len, wide)) > 120
    for width in (20, 40, 80):
        lines = views.table(nodes, Node, width)
        assert len(lines) == 3 and max(map(len, lines)) <= width
        assert [line.split()[0] for line in lines[1:]] == ["node-1", "node-2"]
        assert all(line.endswith("…") for line in lines[1:])
    assert views.table(nodes, Node, 500) == wide


def test_numbers_are_aligned_under_their_heading() -> None:
    head, *lines = views.table([Model("a", size_bytes=GIB), Model("b", size_bytes=140 * GIB)], Model)
    end = head.index("SIZE") + 4
    assert [line[:end].split()[-1] for line in lines] == ["1.0G", "140G"]
    assert all(line[end] == " " and line[end - 1] == "G" for line in lines)


def test_an_empty_table_has_its_heading_and_details_only_when_there_are_any() -> None:
    (head,) = views.table([], Service)
    assert head.split()[0] == "SERVICE" and "DETAIL" not in head
    assert "DETAIL" in views.table([Service("s", detail="out of memory")], Service)[0]


@given(st.text(max_size=60))
def test_what_a_peer_wrote_cannot_steer_the_terminal(text: str) -> None:
    for line in views.table([Node("n1", detail=f"x{text}"), Node("n2")], Node):
        assert line.isprintable()


def test_chunks_say_type_and_shape() -> None:
    array = Chunk("c", ChunkType.NUMPY, "<f4", (512, 4096))
    assert row(array)["TYPE"] == "f32[512,4096]"
    assert row(Chunk("c", ChunkType.NUMPY, "|b1", ()))["TYPE"] == "bool[]"
    assert row(Chunk("c", ChunkType.JSON))["TYPE"] == "json"


@pytest.mark.parametrize("name", sorted(views.COLUMNS))
def test_every_view_reads_an_object_of_which_nothing_is_known_yet(name: str) -> None:
    modules = (
        importlib.import_module(f"gswarm.{r}.types")
        for r in ("cluster", "model", "data", "queue", "profiler", "alert", "scheduler")
    )
    cls: Any = next(found for m in modules if (found := getattr(m, name, None)) is not None)
    one = Block("m", (), 0, None, None, 0.0, False, 0, "") if cls is Block else cls()
    cells = row(one)
    assert all(isinstance(text, str) for text in cells.values())
    assert [label for label, _ in views.detail(one)]


def passes(device: cluster_pb2.Device, *filters: str) -> bool:
    return predicate(common_pb2.KIND_DEVICE, [parse_filter(text) for text in filters])(device)


@given(st.integers(0, 2**60))
def test_a_size_is_found_by_what_is_shown_and_by_its_bytes(size: int) -> None:
    device = cluster_pb2.Device(memory_bytes=size)
    assert passes(device, f"MEMORY={units.size(size)}", f"memory_bytes={size}")
    assert not passes(device, f"MEMORY!={units.size(size)}") and not passes(device, f"memory_bytes={size + 1}")


def test_values_are_filtered_as_they_are_shown() -> None:
    device = cluster_pb2.Device(memory_bytes=85_520_809_984, kind=cluster_pb2.DEVICE_KIND_SIMULATED)
    assert passes(device, "MEMORY=80G", "memory=80GiB", "KIND=SIM", "kind=simulated", "KIND!=gpu")
    assert not passes(device, "MEMORY=40G") and not passes(device, "KIND!=SIM")
    for wrong in ("MEMORY=much", "MEMORY!=", "index=1k", "KIND=SIN"):
        with pytest.raises(InvalidError, match="is never"):
            passes(device, wrong)
